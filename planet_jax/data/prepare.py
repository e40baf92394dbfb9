"""Prepare the data set of a config: obtain missing files, then build and load it."""

import contextlib
import os
from pathlib import Path

from ml_collections import ConfigDict

from planet_jax.data import kaggle
from planet_jax.data.dataset import Dataset, load
from planet_jax.data.labels import CSV
from planet_jax.data.sample import draw_sample
from planet_jax.runtime import distributed
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import lock_folder
from planet_jax.storage.bucket import local_path
from planet_jax.storage.files import fetch_files


def prepare(data: ConfigDict, sample: ConfigDict) -> Dataset:
    """Return the data set of `data.root`; draw, download or build its missing parts.

    Args:
      data, sample: these sections of the config.

    Raises:
      BadInput: as `load`, `fetch` and `draw_sample`; `data.root` cannot be written; the processes
        have different labels or chips.
    """
    obtain(data, sample)
    data_set = load(local_path(data.root), Path(data.cache), data.decoded, data)
    distributed.require_same({"labels": data_set.labels.digest(), "chips": data_set.digest})
    return data_set


def obtain(data: ConfigDict, sample: ConfigDict) -> None:
    """Draw or download missing files of `data.root`; of "folder", only what is at a URL.

    Raises:
      BadInput: as `fetch` and `draw_sample`; `data.root` cannot be written.
    """
    if data.source == "folder":
        fetch_files(data.root)
        return
    # The main process runs first: the others find its files if they share its disk.
    distributed.on_main(_obtain)(data, sample)
    if not distributed.is_main_process():
        _obtain(data, sample)


def _obtain(data: ConfigDict, sample: ConfigDict) -> None:
    root, cache = local_path(data.root), Path(data.cache)
    is_read_only = cache.is_dir() and not os.access(cache, os.W_OK)
    try:
        # The lock is not in the root, which may be read-only too.
        with contextlib.nullcontext() if is_read_only else lock_folder(cache):
            if data.source == "kaggle":
                kaggle.fetch(
                    root,
                    competition=data.kaggle_competition,
                    mirror=data.kaggle_mirror,
                    test=data.test_chips,
                )
            elif not (root / CSV).exists():
                draw_sample(root, sample.chips, sample.test_chips, sample.seed)
    except OSError as error:
        raise BadInput(f"config.data.root = {root}: cannot be written ({error})") from error
