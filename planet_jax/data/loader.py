"""Grain pipelines: batches to train on, to score, and to predict from a folder.

Every pipeline is a Grain `MapDataset` of a host's shares of the global batches, so any step's batch
can be made by itself: a run that resumes at step s starts its iterator at s, and the same chips
with the same augmentation are in the same places of a batch on 1 host or 4, with any number of
threads. A batch is a dict of arrays whose first axis is the host's share of the global batch.
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
from planet_jax.data.dataset import Chips, Dataset, decode_chip
from planet_jax.runtime.errors import BadInput

Batch = dict[str, np.ndarray]
PREFETCH = 4  # batches ready before they are asked for


def random(seed: int, name: str, step: int) -> np.random.Generator:
    """The generator of one purpose at one step (or epoch): nothing else decides its numbers."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed, step])


@dataclass(frozen=True)
class Share:
    """Which part of every global batch this host makes: part `host` of `hosts`, in order."""

    host: int = 0
    hosts: int = 1


class _TrainShares:
    """Element `step * hosts + host` is (epoch, positions in `chips` of that host's share)."""

    def __init__(
        self, n: int, batch_size: int, epochs: int, epoch_offset: int, seed: int, hosts: int
    ) -> None:
        self.n, self.batch_size, self.seed, self.hosts = n, batch_size, seed, hosts
        self.first_epoch = epoch_offset
        self.steps_per_epoch = n // batch_size  # the last short batch is dropped, as fastai does
        self.length = self.steps_per_epoch * epochs * hosts
        self.order = functools.lru_cache(2)(self._order)

    def _order(self, epoch: int) -> Int[np.ndarray, " n"]:
        return random(self.seed, "shuffle", epoch).permutation(self.n)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Int[np.ndarray, " share"]]:
        step, host = divmod(index, self.hosts)
        epoch, step = divmod(step, self.steps_per_epoch)
        share = self.batch_size // self.hosts
        start = step * self.batch_size + host * share
        epoch += self.first_epoch
        return epoch, self.order(epoch)[start : start + share]


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
    """Augmented batches of the rows `chips` of `data`, from `first_step` to the last of `epochs`.

    Yields `{"chips": uint8 [b, size, size, 3], "targets": uint8 [b, classes]}` with b the host's
    share of `batch_size`. Each epoch is shuffled anew; `epoch_offset` numbers the first, so
    that a stage does not see again what the stages before it saw. `augment` holds the keywords of
    `augment.draw`; None renders plainly.
    """

    @functools.lru_cache(2)
    def augmentation(epoch: int) -> Augmentation | None:
        if augment is None:
            return None
        return draw(random(seed, "augment", epoch), len(chips), **augment)

    def make(element: tuple[int, np.ndarray]) -> Batch:
        epoch, positions = element
        drawn = augmentation(epoch)
        rows = chips[positions]
        return {
            "chips": _render(data.chips, rows, drawn and drawn[positions], size),
            "targets": data.labels.targets[rows],
        }

    source = _TrainShares(len(chips), batch_size, epochs, epoch_offset, seed, share.hosts)
    return _iterate(source, share, make, threads, first_step)


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
    """Plainly resized batches of every row in `chips`, in order; the last is padded.

    Yields `{"chips": uint8 [b, size, size, 3], "real": bool [b]}`; `real` is False for padding.
    `augmentation` renders another view of each of the chips.
    """

    def make(rows: np.ndarray) -> Batch:
        places = np.maximum(rows, 0)
        pixels = _render(data.chips, chips[places], augmentation and augmentation[places], size)
        return {"chips": pixels, "real": rows >= 0}

    return _iterate(_score_shares(len(chips), batch_size, share.hosts), share, make, threads)


def folder_batches(
    files: Sequence[Path],
    *,
    size: int,
    batch_size: int,
    augmentation: Augmentation | None = None,
    share: Share = Share(),
    threads: int = 2,
) -> Iterator[Batch]:
    """Like `score_batches`, for image files of any mode and size, each resized by itself.

    Raises:
      BadInput: for a file that cannot be decoded.
    """

    def chip(row: int) -> np.ndarray:
        if row < 0:
            return np.zeros((1, size, size, 3), np.uint8)
        try:
            view = augmentation and augmentation[np.array([row])]
            return render(decode_chip(files[row].read_bytes())[None], view, size)
        except (OSError, ValueError) as error:
            raise BadInput(f"{files[row]}: cannot be decoded ({error}); take it away") from None

    def make(rows: np.ndarray) -> Batch:
        return {"chips": np.concatenate([chip(row) for row in rows]), "real": rows >= 0}

    return _iterate(_score_shares(len(files), batch_size, share.hosts), share, make, threads)


def _render(
    chips: Chips, rows: Int[np.ndarray, " m"], augmentation: Augmentation | None, size: int
) -> UInt8[np.ndarray, "m size size 3"]:
    """Stored pixels are read where they lie; encoded chips are decoded first."""
    if isinstance(chips, np.ndarray):
        return render(np.asarray(chips), augmentation, size, rows)
    return render(chips[rows], augmentation, size)


def _score_shares(n: int, batch_size: int, hosts: int) -> list[Int[np.ndarray, " share"]]:
    """Rows in order, -1 where the last batch is padded, cut into the hosts' shares."""
    batches = -(-n // batch_size)
    rows = np.full(batches * batch_size, -1)
    rows[:n] = np.arange(n)
    return list(rows.reshape(batches * hosts, batch_size // hosts))


def _iterate(
    source: Any, share: Share, make: Callable[[Any], Batch], threads: int, first_step: int = 0
) -> Iterator[Batch]:
    shares = grain.MapDataset.source(source)[first_step * share.hosts + share.host :: share.hosts]
    if len(shares) == 0:
        return iter(())
    prefetch = PREFETCH if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(shares.map(make).to_iter_dataset(options))


__all__ = ["Batch", "Chips", "Share", "folder_batches", "random", "score_batches", "train_batches"]
