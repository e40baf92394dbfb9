"""Progress of long work: a bar on a terminal, a line every ten seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from planet_jax.runtime.distributed import is_main_process

SECONDS_BETWEEN_LINES = 10.0
Advance = Callable[..., None]  # advance(n=1, note="")


def notify(line: str) -> None:
    """Print one line to stderr above a progress bar; only the main process prints."""
    if is_main_process():
        tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def progress(description: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(n=1, note="")`, to be called after each n of `total` units."""
    shows_bar = "ipykernel.kernelapp" in sys.modules or (sys.stderr.isatty() and is_main_process())
    last = time.monotonic()

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        bar.set_postfix_str(note, refresh=False)
        bar.update(n)
        if not shows_bar and (done >= total or time.monotonic() - last >= SECONDS_BETWEEN_LINES):
            notify(f"{description}: {done}/{total} {unit}{'  ' + note if note else ''}")
            last = time.monotonic()

    with tqdm(
        desc=description, total=total, initial=done, unit=f" {unit}", disable=not shows_bar
    ) as bar:
        yield advance
