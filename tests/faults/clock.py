"""Let the wall clock jump by days, either way, all the time."""

from tests.faults.outcome import Outcome, Rng
from tests.faults.runs import Home, end


def jumping_clock(home: Home, rng: Rng, number: int) -> Outcome:
    """Run the chain with a clock that jumps; times are not compared."""
    return Outcome(home.problem(end(home.start(FAULT_CLOCK=str(number)))))
