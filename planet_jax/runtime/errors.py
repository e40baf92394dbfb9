"""The one exception that means: the person at the keyboard can mend this."""

import difflib
import errno
from collections.abc import Iterable


class BadInput(Exception):
    """A mistake in what the user gave: option, file, folder, archive, label or weight.

    Its message is one line that says what is wrong, where, and what to do. `main` prints that
    line alone and ends with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The valid name that looks most like `name`, as the end of a sentence: 'did you mean x?'"""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"valid: {', '.join(valid)}"


def first_few(names: Iterable[str], n: int = 3) -> str:
    """'a, b, c and 4 more': enough to find the trouble, short enough for one line."""
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(map(str, names[:n])) + more


FULL = "free some room; then the same command goes on"
PLACES = {
    errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL,
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "it must be writable and readable"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP), "see to the disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
}  # fmt: skip


def resource_error(error: BaseException) -> str | None:
    """One line on what the machine lacked (memory, room or rights on its disk), else None."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in PLACES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}: {PLACES[error.errno]}"
    if full := next((words for words in ("No space left", "quota exceeded") if words in text), ""):
        return f"{full} on the disk: {FULL}"  # Orbax says so within a page of text
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return (
            "the memory does not suffice: lower config.data.batch_size or config.data.size, or set "
            f"config.train.precision to bfloat16 ({' '.join(text.split())[:120]})"
        )
    return None


class RunFailed(Exception):
    """A run that cannot go on, through nobody's typing: `main` prints its line and ends with 1."""
