"""The outcome of one try of a fault, and the table of all tries."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.faults.runs import Home

Rng = np.random.Generator


@dataclass(frozen=True)
class Outcome:
    """The outcome of one try.

    Attributes:
      problem: what was wrong; '' if nothing was.
      tried: how many faults the try had.
      notes: events that the table counts.
      seconds: from the signal to the end of the slowest process.
    """

    problem: str
    tried: int = 1
    notes: Sequence[str] = field(default_factory=list)
    seconds: float = 0


@dataclass(frozen=True)
class Fault:
    """A kind of fault; it has one row in the table.

    Attributes:
      name: the name of its option on the command line.
      count: the default number of faults.
      attempt: runs one try in a `Home`; takes the try's random generator and index.
      per_try: faults in one try.
      is_alone: whether the try runs alone, because it is timed.
    """

    name: str
    count: int
    attempt: Callable[[Home, Rng, int], Outcome]
    per_try: int = 1
    is_alone: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    tried: int
    right: int
    figures: str
    seconds: float

    def __str__(self) -> str:
        counts = f"{self.tried:>8}{self.right:>8}{self.seconds:>8.0f}"
        return f"{self.what:<24}{counts}  {self.figures}"


HEADER = f"{'what':<24}{'tried':>8}{'right':>8}{'seconds':>8}  figures"


def row(what: str, outcomes: Sequence[Outcome], seconds: float) -> Row:
    """Sum up the tries of one fault. Together, the tries took `seconds`."""
    counts = Counter(note for outcome in outcomes for note in outcome.notes)
    figures = [f"{count} {note}" for note, count in sorted(counts.items())]
    if slowest := max(outcome.seconds for outcome in outcomes):
        figures.append(f"ended within {slowest:.1f} s")
    right = sum(outcome.tried for outcome in outcomes if not outcome.problem)
    tried = sum(outcome.tried for outcome in outcomes)
    return Row(what, tried, right, ", ".join(figures), seconds)
