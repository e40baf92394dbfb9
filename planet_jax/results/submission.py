"""Build the competition's submission, a table `image_name,tags`.

Its rows have the order of the sample submission: 40,669 chips of test-jpg (test_0, ...), then
20,522 of test-jpg-additional (file_0, ...).
"""

import string
from collections.abc import Iterable, Sequence

import pandas as pd
from ml_collections import ConfigDict

from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify
from planet_jax.storage.bucket import local_path

SAMPLE = "sample_submission_v2.csv"
ROWS = 61_191


def order(config: ConfigDict, chips: Iterable[str]) -> list[str]:
    """Return the names to submit, in the order of the sample submission in data.root.

    Without that file, return all names by number, test_ before file_.

    Raises:
      BadInput: the sample cannot be read, or names chips that are not among `chips`.
    """
    sample, names = local_path(config.data.root) / SAMPLE, set(chips)
    if not sample.exists():
        if len(names) != ROWS:
            notify(f"{sample}: no such file; {len(names)} chips, the competition expects {ROWS}")
        return sorted(names, key=_sort_key)
    try:
        wanted = pd.read_csv(sample, dtype=str, keep_default_na=False)["image_name"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{sample}: no table with a column image_name ({error})") from None
    if missing := [name for name in wanted if name not in names]:
        raise BadInput(
            f"{sample}: {len(missing)} of its chips are missing: {first_few(missing)}; "
            "download them with --config.data.test_chips=True, or set config.predict.folder"
        )
    if extra := len(names) - len(set(wanted)):
        notify(f"{sample}: does not name {extra} chips; they are only in predictions.csv")
    return wanted


def _sort_key(name: str) -> tuple[bool, str, int]:
    """Sort test_2 before test_10, and both before file_0."""
    stem = name.rstrip(string.digits)
    return stem != "test_", stem, int(name[len(stem) :] or -1)


def rows(table: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Return `image_name,tags` of the names in `order`, from a table of predictions."""
    first_two = table.iloc[:, :2]  # by position: a label may have the same name
    return first_two.set_index("image_name").loc[list(order)].reset_index()
