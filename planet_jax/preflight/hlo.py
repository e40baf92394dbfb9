"""Read a compiled program's HLO text: its instructions, and which memory their arrays are in.

`compiled.as_text()` is the schedule that the device executes, one instruction per kernel or
transfer. In a TPU's layouts `S(1)` marks an array in XLA's alternate memory space, the fast memory
on the chip (VMEM); without a mark it is in the default space, the main memory (HBM). Sources: XLA's
`memory_space_assignment` ("default (slow and large) and alternate (fast and small)"), and
https://jax-ml.github.io/scaling-book/profiling.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8,
}  # fmt: skip
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-$]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


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


def parse(text: str) -> tuple[dict[str, Computation], Computation]:
    """Return a program's computations by name, and the one that is run."""
    computations: dict[str, Computation] = {}
    computation = entry = {}
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-$]+) \(.*\{$", line):
            computation = computations[header[1]] = {}
            if line.startswith("ENTRY"):
                entry = computation
        elif parts := INSTRUCTION.match(line):
            name, results, opcode, rest = parts.groups()
            opcode = find(r'custom_call_target="([^"]*)"', rest, opcode)
            operands = re.findall(r"%([\w.\-$]+)", rest.partition(")")[0])
            computation[name] = Instruction(name, arrays(results), opcode, tuple(operands), rest)
    return computations, entry


def find(pattern: str, text: str, default: str | None = None) -> str:
    """Return the first group of a pattern in a text.

    Raises:
      ValueError: the pattern is not there and there is no default.
    """
    if found := re.search(pattern, text):
        return found[1]
    if default is None:
        raise ValueError(f"the compiler's program has no {pattern} in {text[:200]}")
    return default
