"""Read a compiled program's HLO text: which memory its arrays are in, and its matrix products.

`compiled.as_text()` is the schedule that the device executes, one instruction per kernel or
transfer. In a TPU's layouts `S(1)` marks an array in XLA's alternate memory space, the fast memory
on the chip (VMEM); without a mark it is in the default space, the main memory (HBM). Sources: XLA's
`memory_space_assignment` ("default (slow and large) and alternate (fast and small)"), and
https://jax-ml.github.io/scaling-book/profiling.
"""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8,
}  # fmt: skip
# These move nothing. A "-done" ends the transfer that its "-start" began.
NO_TRAFFIC = re.compile("parameter|constant|tuple|get-tuple-element|bitcast|partition-id|.*-done")
VIEWS = ("bitcast", "ConcatBitcast")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-$]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
# The roles of (operand 0, operand 1, result 0) in each convolution of cuDNN.
CUDNN = {
    "__cudnn$convForward": "xwy", "__cudnn$convBiasActivationForward": "xwy",
    "__cudnn$convBackwardInput": "ywx", "__cudnn$convBackwardFilter": "xyw",
}  # fmt: skip


class Array(NamedTuple):
    """An array in one of the device's memories."""

    dtype: str
    shape: tuple[int, ...]
    space: int  # 0: main memory; 1: fast memory; others hold single words

    @property
    def bytes(self) -> int:
        """Bytes of the items, without the layout's padding."""
        return ITEM_BYTES.get(self.dtype, 0) * math.prod(self.shape)

    @property
    def main_bytes(self) -> int:
        """Bytes in main memory."""
        return 0 if self.space else self.bytes


def arrays(shapes: str) -> tuple[Array, ...]:
    """Return the arrays of a shape in HLO text: `(f32[64]{0:T(128)S(1)}, bf16[2,3])`."""
    return tuple(
        Array(
            dtype,
            tuple(int(size) for size in sizes.split(",") if size),
            int(space[1]) if (space := re.search(r"S\((\d+)\)", layout)) else 0,
        )
        for dtype, sizes, layout in ARRAY.findall(shapes)
    )


@dataclass(frozen=True)
class Instruction:
    """One instruction: `name = results opcode(text`."""

    name: str
    results: tuple[Array, ...]  # the leaves of a tuple
    opcode: str  # of a custom call, its target
    operands: tuple[str, ...]
    text: str

    @property
    def called(self) -> list[str]:
        """Names of the computations that a fusion or a call runs once."""
        return re.findall(r"\b(?:calls|to_apply)=%?([\w.\-$]+)", self.text)


Computation = dict[str, Instruction]  # in order; the last one is the result


class Kernel(NamedTuple):
    """What one instruction of the schedule costs."""

    read: int  # bytes from main memory
    written: int  # bytes to main memory
    flops: int  # of its convolutions and matrix products
    cycles: int  # the TPU compiler's estimate; 0 where it gives none


class Program:
    """A compiled program."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        for line in text.splitlines():
            if header := re.match(r"(?:ENTRY )?%?([\w.\-$]+) \(.*\{$", line):
                computation = self.computations[header[1]] = {}
                if line.startswith("ENTRY"):
                    self.entry = computation
            elif parts := INSTRUCTION.match(line):
                name, results, opcode, rest = parts.groups()
                opcode = _find(r'custom_call_target="([^"]*)"', rest, opcode)
                operands = re.findall(r"%([\w.\-$]+)", rest.partition(")")[0])
                computation[name] = Instruction(
                    name, arrays(results), opcode, tuple(operands), rest
                )

    def kernels(self) -> Iterator[Kernel]:
        """Yield the cost of every instruction that the device executes, each time it does."""
        for computation, instruction, times in self._executed(self.entry):
            if not NO_TRAFFIC.fullmatch(instruction.opcode) and instruction.opcode not in VIEWS:
                cycles = int(_find(r'"estimated_cycles":"(\d+)"', instruction.text, "0"))
                read, written = self._traffic(instruction, computation)
                kernel = Kernel(read, written, self._flops(instruction, computation), cycles)
                yield from itertools.repeat(kernel, times)

    def all_reduces(self) -> Iterator[int]:
        """Yield the bytes of every all-reduce, each time it is executed."""
        for _, instruction, times in self._executed(self.entry):
            for size in self._all_reduces(instruction):
                yield from itertools.repeat(size, times)

    def _all_reduces(self, instruction: Instruction) -> Iterator[int]:
        if instruction.opcode in ("all-reduce", "all-reduce-start"):
            yield sum(array.bytes for array in instruction.results)
        for name in instruction.called:
            for inner in self.computations[name].values():
                yield from self._all_reduces(inner)

    def _executed(
        self, computation: Computation, times: int = 1
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yield the instructions of a schedule and of its loops, and how often each is executed."""
        for instruction in computation.values():
            if instruction.opcode != "while":
                yield computation, instruction, times
                continue
            body = self.computations[_find(r"\bbody=%?([\w.\-$]+)", instruction.text)]
            yield from self._executed(body, times * self._trips(instruction))

    def _trips(self, loop: Instruction) -> int:
        """Return how often a loop runs, which the GPU's compiler writes and the TPU's does not.

        JAX's loops count from 0, and the condition compares the count with a constant.
        """
        if known := _find(r'"known_trip_count":\{"n":"(\d+)"', loop.text, ""):
            return int(known)
        condition = self.computations[_find(r"\bcondition=%?([\w.\-$]+)", loop.text)]
        (limit,) = (c.text for c in condition.values() if c.opcode == "constant")
        return int(limit.partition(")")[0])

    def _traffic(self, instruction: Instruction, within: Computation) -> tuple[int, int]:
        """Return the bytes that an instruction reads from and writes to main memory."""
        if instruction.opcode == "copy-start":  # (target, source, context)
            target, source = instruction.results[:2]
            return source.main_bytes, target.main_bytes
        if instruction.opcode == "slice-start":  # ((source), target, context)
            source, target = instruction.results[:2]
            return (0 if source.space else target.bytes), target.main_bytes
        body = next((self.computations[name] for name in instruction.called), {})
        read = 0
        for index, name in enumerate(instruction.operands):
            if name not in instruction.operands[:index]:
                whole = sum(array.main_bytes for array in within[name].results)
                read += min(whole, _bytes_read(body, index, whole))
        written = sum(array.main_bytes for array in instruction.results)
        return read, min(written, _bytes_written(body, written))

    def _flops(self, instruction: Instruction, within: Computation) -> int:
        operands = [within[name].results[0] for name in instruction.operands[:2]]
        return product_flops(instruction, operands) + sum(
            self._flops(inner, self.computations[name])
            for name in instruction.called
            for inner in self.computations[name].values()
        )

    def fast_memory_peak(self) -> int:
        """Return the most bytes of fast memory that arrays occupy at one time.

        An array occupies it from the instruction that makes it to the last that names it. Arrays
        that live only inside of a loop are not counted.
        """
        places: dict[str, list[tuple[int, int]]] = {}  # name: its leaves' (identity, bytes)
        last: dict[int, int] = {}
        made: dict[int, tuple[int, int]] = {}
        fresh = itertools.count()
        for time, (name, instruction) in enumerate(self.entry.items()):
            named = [places[operand] for operand in instruction.operands]
            for identity, _ in itertools.chain(*named):
                last[identity] = time
            match instruction.opcode:
                case "get-tuple-element":
                    places[name] = [named[0][int(_find(r"index=(\d+)", instruction.text))]]
                case "copy-done":
                    places[name] = [named[0][0]]
                case "slice-done":
                    places[name] = [named[0][1]]
                case opcode if opcode in (*VIEWS, "tuple"):
                    places[name] = list(itertools.chain(*named))
                case _:
                    new = [
                        (next(fresh), array.bytes if array.space == 1 else 0)
                        for array in instruction.results
                    ]
                    if instruction.opcode in ("copy-start", "slice-start"):
                        new[instruction.opcode == "copy-start"] = named[0][0]  # the source
                    places[name] = new
                    for identity, size in new:
                        made.setdefault(identity, (time, size))
        change = [0] * (len(self.entry) + 1)
        for identity, (time, size) in made.items():
            change[time] += size
            change[last.get(identity, time) + 1] -= size
        return max(itertools.accumulate(change))


def _bytes_read(body: Computation, index: int, whole: int) -> int:
    """Return the bytes that a fusion reads of operand `index`: of a slice, only its part."""

    def of_user(user: Instruction, name: str) -> int:
        is_first = user.operands.index(name) == 0
        if user.opcode == "dynamic-update-slice" and is_first:  # in place
            return 0
        if user.opcode in ("slice", "dynamic-slice", "gather") and is_first:
            return user.results[0].bytes
        return whole

    for name, parameter in body.items():
        if parameter.opcode == "parameter" and parameter.text.startswith(f"{index})"):
            return sum(of_user(user, name) for user in body.values() if name in user.operands)
    return whole


def _bytes_written(body: Computation, whole: int) -> int:
    """Return the bytes that a fusion writes; one that updates a slice writes only its part."""
    if body and (result := list(body.values())[-1]).opcode == "dynamic-update-slice":
        return body[result.operands[1]].results[0].bytes
    return whole


def product_flops(instruction: Instruction, operands: list[Array]) -> int:
    """Return the FLOPs of a convolution or matrix product, 0 for any other instruction."""
    opcode, text = instruction.opcode, instruction.text
    if opcode == "convolution" or opcode in CUDNN:
        return _convolution_flops(instruction, operands)
    if opcode == "dot":
        contracted = _find(r"lhs_contracting_dims=\{([\d,]*)\}", text).split(",")
    elif opcode.startswith("__cublas$"):
        contracted = re.findall(r"\d+", _find(r'"lhs_contracting_dimensions":\[(.*?)\]', text))
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
    labels = re.split("_|->", _find(r"dim_labels=([\w>-]+)", text))

    def size(role: str, axis: str) -> int:
        return shape[role][labels["xwy".index(role)].index(axis)]

    window = dict(re.findall(r"(\w+)=([^ ]+)", _find(r"window=\{([^}]*)\}", text, "")))
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
    batch = size("x", "b") // int(_find(r"batch_group_count=(\d+)", text, "1"))
    return 2 * taps * batch * size("w", "i") * size("y", "f")


def _find(pattern: str, text: str, default: str | None = None) -> str:
    """Return the first group of a pattern in a text.

    Raises:
      ValueError: the pattern is not there and there is no default.
    """
    if found := re.search(pattern, text):
        return found[1]
    if default is None:
        raise ValueError(f"the compiler's program has no {pattern} in {text[:200]}")
    return default
