"""Follow a compiled program: what each kernel moves and computes, and how often it is executed."""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from planet_jax.preflight.hlo import Computation, Instruction, find, parse
from planet_jax.preflight.products import product_flops

# These move nothing. A "-done" ends the transfer that its "-start" began.
NO_TRAFFIC = re.compile("parameter|constant|tuple|get-tuple-element|bitcast|partition-id|.*-done")
VIEWS = ("bitcast", "ConcatBitcast")


class Kernel(NamedTuple):
    """What one instruction of the schedule costs."""

    read: int  # bytes from main memory
    written: int  # bytes to main memory
    flops: int  # of its convolutions and matrix products
    cycles: int  # the TPU compiler's estimate; 0 where it gives none


class Program:
    """A compiled program."""

    def __init__(self, text: str) -> None:
        self.computations, self.entry = parse(text)

    def kernels(self) -> Iterator[Kernel]:
        """Yield the cost of every instruction that the device executes, each time it does."""
        for computation, instruction, times in self._executed(self.entry):
            if not NO_TRAFFIC.fullmatch(instruction.opcode) and instruction.opcode not in VIEWS:
                cycles = int(find(r'"estimated_cycles":"(\d+)"', instruction.text, "0"))
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
            body = self.computations[find(r"\bbody=%?([\w.\-$]+)", instruction.text)]
            yield from self._executed(body, times * self._trips(instruction))

    def _trips(self, loop: Instruction) -> int:
        """Return how often a loop runs, which the GPU's compiler writes and the TPU's does not.

        JAX's loops count from 0, and the condition compares the count with a constant.
        """
        if known := find(r'"known_trip_count":\{"n":"(\d+)"', loop.text, ""):
            return int(known)
        condition = self.computations[find(r"\bcondition=%?([\w.\-$]+)", loop.text)]
        limits = [c.text for c in condition.values() if c.opcode == "constant"]
        if len(limits) != 1:
            raise ValueError(f"the compiler's program has a loop without a known end: {loop.name}")
        return int(limits[0].partition(")")[0])

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
                    places[name] = [named[0][int(find(r"index=(\d+)", instruction.text))]]
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
