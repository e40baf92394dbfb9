"""The one exception that means: the person at the keyboard can mend this."""

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """A mistake in what the user gave: knob, file, folder, archive, label or weight.

    Its message is one line that says what is wrong, where, and what to do. `main` prints that
    line alone and ends with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name that looks most like `name`, as the end of a sentence: 'did you mean x?'"""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"valid: {', '.join(valid)}"


def first_few(names: Iterable[str], n: int = 3) -> str:
    """'a, b, c and 4 more': enough to find the trouble, short enough for one line."""
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(map(str, names[:n])) + more


class RunFailed(Exception):
    """A run that cannot go on, through nobody's typing: `main` prints its line and ends with 1."""
