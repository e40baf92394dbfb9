"""Grain pipelines of batches for training, for scoring, and for prediction from a folder.

Each element of a pipeline is one process's share of one global batch. Any step's batch can be made
without earlier batches, so a run that resumes at step s starts its iterator at s. The chips, their
order and their augmentation do not depend on the number of processes or threads. A batch is a dict
of arrays whose first axis is the process's share.
"""

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, UInt8

from planet_jax.data.augment import Augmentation, draw, render
from planet_jax.data.dataset import Chips, Dataset
from planet_jax.data.decode import decode_chip
from planet_jax.runtime.errors import BadInput

Batch = dict[str, np.ndarray]
PREFETCH = 4  # batches


def named_rng(seed: int, name: str, step: int) -> np.random.Generator:
    """Return a random generator that depends only on the seed, a name, and a step or epoch."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed, step])


@dataclass(frozen=True)
class Share:
    """The part of every global batch that process number `process` of `processes` makes."""

    process: int = 0
    processes: int = 1


def train_batches(
    data: Dataset,
    chips: Int[np.ndarray, " n"],
    *,
    size: int,
    batch_size: int,
    epochs: int,
    seed: int,
    augment: dict[str, float] | None,
    epoch_offset: int = 0,
    first_step: int = 0,
    share: Share = Share(),
    threads: int = 2,
) -> Iterator[Batch]:
    """Iterate over augmented training batches of the rows `chips`, from `first_step` to the end.

    Yields `{"chips": uint8 [b, size, size, 3], "targets": uint8 [b, classes]}`; b is the process's
    share of `batch_size`.

    Args:
      augment: keywords of `augment.draw`; None renders without augmentation.
      epoch_offset: number of the first epoch. Each epoch has its own order and augmentation, so
        stages that continue the numbering do not repeat them.
    """

    @functools.lru_cache(2)
    def augmentation(epoch: int) -> Augmentation | None:
        if augment is None:
            return None
        return draw(named_rng(seed, "augment", epoch), len(chips), **augment)

    def make(element: tuple[int, np.ndarray]) -> Batch:
        epoch, positions = element
        drawn = augmentation(epoch)
        rows = chips[positions]
        return {
            "chips": _render(data.chips, rows, drawn and drawn[positions], size),
            "targets": data.labels.targets[rows],
        }

    source = _TrainShares(len(chips), batch_size, epochs, epoch_offset, seed, share.processes)
    return _iterate(source, share, make, threads, first_step)


class _TrainShares:
    """Element `step * processes + process` is (epoch, positions in `chips`) of one share."""

    def __init__(
        self, n: int, batch_size: int, epochs: int, epoch_offset: int, seed: int, processes: int
    ) -> None:
        self.n, self.batch_size, self.seed, self.processes = n, batch_size, seed, processes
        self.epoch_offset = epoch_offset
        self.steps_per_epoch = n // batch_size  # the short last batch is dropped, as in fastai
        self.length = self.steps_per_epoch * epochs * processes
        self.order = functools.lru_cache(2)(self._order)

    def _order(self, epoch: int) -> Int[np.ndarray, " n"]:
        return named_rng(self.seed, "shuffle", epoch).permutation(self.n)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Int[np.ndarray, " share"]]:
        step, process = divmod(index, self.processes)
        epoch, step = divmod(step, self.steps_per_epoch)
        epoch += self.epoch_offset
        share = self.batch_size // self.processes
        start = step * self.batch_size + process * share
        return epoch, self.order(epoch)[start : start + share]


def score_batches(
    data: Dataset,
    chips: Int[np.ndarray, " n"],
    *,
    size: int,
    batch_size: int,
    augmentation: Augmentation | None = None,
    share: Share = Share(),
    threads: int = 2,
) -> Iterator[Batch]:
    """Iterate over the rows `chips` in order; pad the last batch.

    Yields `{"chips": uint8 [b, size, size, 3], "real": bool [b]}`; `real` is False for padding.

    Args:
      augmentation: parameters of one view of each chip; None: chips are only resized.
    """

    def make(positions: np.ndarray) -> Batch:
        rows = np.maximum(positions, 0)
        pixels = _render(data.chips, chips[rows], augmentation and augmentation[rows], size)
        return {"chips": pixels, "real": positions >= 0}

    return _iterate(_score_shares(len(chips), batch_size, share.processes), share, make, threads)


def folder_batches(
    files: Sequence[Path],
    skipped: dict[int, str] | None = None,
    *,
    size: int,
    batch_size: int,
    augmentation: Augmentation | None = None,
    share: Share = Share(),
    threads: int = 2,
) -> Iterator[Batch]:
    """Iterate over image files of any mode and size, in batches like those of `score_batches`.

    Args:
      skipped: filled with `{position: reason}` for each of this process's files that cannot be
        decoded. The chip of such a file is black.

    Raises:
      BadInput: a file cannot be decoded, and `skipped` is None.
    """

    def chip(position: int) -> np.ndarray:
        if position < 0:
            return np.zeros((1, size, size, 3), np.uint8)
        file = files[position]
        try:
            view = augmentation and augmentation[np.array([position])]
            return render(decode_chip(file.read_bytes())[None], view, size)
        except (OSError, ValueError) as error:
            if skipped is None:
                raise BadInput(f"{file}: cannot be decoded ({error}); remove it") from None
            skipped[int(position)] = getattr(error, "strerror", None) or str(error)
            return np.zeros((1, size, size, 3), np.uint8)

    def make(positions: np.ndarray) -> Batch:
        pixels = np.concatenate([chip(position) for position in positions])
        return {"chips": pixels, "real": positions >= 0}

    return _iterate(_score_shares(len(files), batch_size, share.processes), share, make, threads)


def _score_shares(n: int, batch_size: int, processes: int) -> list[Int[np.ndarray, " share"]]:
    """Return each process's positions in each batch, in order; -1 is padding of the last batch."""
    batches = -(-n // batch_size)
    positions = np.full(batches * batch_size, -1)
    positions[:n] = np.arange(n)
    return list(positions.reshape(batches * processes, batch_size // processes))


def _render(
    chips: Chips, rows: Int[np.ndarray, " m"], augmentation: Augmentation | None, size: int
) -> UInt8[np.ndarray, "m size size 3"]:
    """Render stored pixels without a copy; decode encoded chips first."""
    if isinstance(chips, np.ndarray):
        return render(np.asarray(chips), augmentation, size, rows)
    return render(chips[rows], augmentation, size)


def _iterate(
    source: Any, share: Share, make: Callable[[Any], Batch], threads: int, first_step: int = 0
) -> Iterator[Batch]:
    """Make batches from this process's elements of `source`, in `threads` threads."""
    shares = grain.MapDataset.source(source)[
        first_step * share.processes + share.process :: share.processes
    ]
    if len(shares) == 0:
        return iter(())
    prefetch = PREFETCH if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(shares.map(make).to_iter_dataset(options))
