"""Make the wall clock jump by days, forward and back, during a whole run."""

from tests.faults.outcome import Outcome, Rng
from tests.faults.runs import Home, end


def jumping_clock(home: Home, rng: Rng, number: int) -> Outcome:
    """Run the chain with a jumping clock and compare it, except for its times."""
    return Outcome(home.problem(end(home.start(FAULT_CLOCK=str(number)))))
