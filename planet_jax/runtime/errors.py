"""The errors that end a command with one line."""

import difflib
import errno
from collections.abc import Iterable


class BadInput(Exception):
    """A mistake of the user: one line on what is wrong, where, what to do; exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RunFailed(Exception):
    """A run that cannot continue although its input is right: one line; exit status 1."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return 'did you mean X?' for the closest valid name, or the list of all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"valid: {', '.join(valid)}"


def first_few(names: Iterable[str], n: int = 3) -> str:
    """Return 'a, b, c and 4 more'."""
    names = list(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


FREE_SPACE = "free some space, then repeat the same command"
ADVICE = {
    errno.ENOSPC: FREE_SPACE, errno.EDQUOT: FREE_SPACE, errno.EFBIG: FREE_SPACE,
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "it must be readable and writable"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP), "check the disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
}  # fmt: skip


def resource_error(error: BaseException) -> str | None:
    """Return one line if the machine ran out of memory or disk, or denied access; else None."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in ADVICE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}: {ADVICE[error.errno]}"
    if "No space left" in text or "quota exceeded" in text:  # Orbax adds a page of text
        return f"No space left on the disk, or its quota exceeded: {FREE_SPACE}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        advice = "lower config.data.batch_size or data.size, or set train.precision=bfloat16"
        return f"out of memory: {advice} ({' '.join(text.split())[:120]})"
    return None
