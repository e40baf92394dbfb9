"""Count the FLOPs of a compiled program's convolutions and matrix products."""

import math
import re

from planet_jax.preflight.hlo import Array, Instruction, find

# The roles of (operand 0, operand 1, result 0) in each convolution of cuDNN.
CUDNN = {
    "__cudnn$convForward": "xwy", "__cudnn$convBiasActivationForward": "xwy",
    "__cudnn$convBackwardInput": "ywx", "__cudnn$convBackwardFilter": "xyw",
}  # fmt: skip


def product_flops(instruction: Instruction, operands: list[Array]) -> int:
    """Return the FLOPs of a convolution or matrix product, 0 for any other instruction."""
    opcode, text = instruction.opcode, instruction.text
    if opcode == "convolution" or opcode in CUDNN:
        return _convolution_flops(instruction, operands)
    if opcode == "dot":
        contracted = find(r"lhs_contracting_dims=\{([\d,]*)\}", text).split(",")
    elif opcode.startswith("__cublas$"):
        contracted = re.findall(r"\d+", find(r'"lhs_contracting_dimensions":\[(.*?)\]', text))
    else:
        return 0
    sizes = [operands[0].shape[int(axis)] for axis in contracted]
    return 2 * math.prod(instruction.results[0].shape) * math.prod(sizes)


def _convolution_flops(instruction: Instruction, operands: list[Array]) -> int:
    """Count as XLA's `HloCostAnalysis`: no products with padding or between dilated values."""
    text = instruction.text
    roles = CUDNN.get(instruction.opcode, "xwy")
    shape = dict(zip(roles, [a.shape for a in (*operands, instruction.results[0])], strict=True))
    # The labels are those of the forward convolution, x_w->y.
    labels = re.split("_|->", find(r"dim_labels=([\w>-]+)", text))

    def size(role: str, axis: str) -> int:
        return shape[role][labels["xwy".index(role)].index(axis)]

    window = dict(re.findall(r"(\w+)=([^ ]+)", find(r"window=\{([^}]*)\}", text, "")))
    taps = 1
    for i, axis in enumerate(sorted(set(labels[2]) - {"b", "f"})):
        fields = {name: value.split("x")[i] for name, value in window.items()}
        low = int(fields.get("pad", "0_0").split("_")[0])
        stride, spread, dilation = (
            int(fields.get(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        places = (
            y * stride + k * dilation - low
            for y in range(size("y", axis))
            for k in range(size("w", axis))
        )
        last = (size("x", axis) - 1) * spread
        taps *= sum(0 <= place <= last and place % spread == 0 for place in places)
    batch = size("x", "b") // int(find(r"batch_group_count=(\d+)", text, "1"))
    return 2 * taps * batch * size("w", "i") * size("y", "f")
