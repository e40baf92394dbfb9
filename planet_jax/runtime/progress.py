"""How far a long piece of work is: a bar on a terminal, now and then a line anywhere else."""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import tqdm

from planet_jax.runtime import distributed

with warnings.catch_warnings():  # without ipywidgets the bar in a notebook is text: fine
    warnings.simplefilter("ignore", tqdm.TqdmWarning)
    import tqdm.auto

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[..., None]  # advance(n=1, note="")


def notify(line: str) -> None:
    """Prints one line of news to stderr without tearing a bar that is on the screen.

    Of several processes only the first speaks.
    """
    if distributed.is_main_process():
        tqdm.auto.tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Yields `advance(n=1, note="")`, to be called as `n` more of `total` units are done."""
    if (sys.stderr.isatty() and distributed.is_main_process()) or "ipykernel" in sys.modules:
        with tqdm.auto.tqdm(desc=what, total=total, initial=done, unit=f" {unit}") as bar:

            def advance_bar(n: int = 1, note: str = "") -> None:
                bar.set_postfix_str(note, refresh=False)
                bar.update(n)

            yield advance_bar
        return

    last = time.monotonic()

    def advance_line(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if done >= total or now - last >= SECONDS_BETWEEN_LINES:
            notify(f"{what}: {done}/{total} {unit}{'  ' + note if note else ''}")
            last = now

    yield advance_line
