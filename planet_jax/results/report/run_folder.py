"""Read a run folder: its files, the runs before it, and the commands that repeat it."""

import contextlib
import functools
import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from planet_jax.config import OPTIONS, as_json, translate_saved
from planet_jax.runtime.errors import BadInput
from planet_jax.storage.bucket import StoreError, local_path
from planet_jax.train.bucket_run import fetch

REQUIRED = ("config.json", "history.csv", "steps.csv")  # training writes them at its start


class MissingPart(Exception):
    """Raised for a part whose files are missing; the message names the command that writes them."""


class RunFolder:
    """The files of a run folder, read when first used.

    Attributes:
      folder, root: the run folder, and the folder of its chips.
      about: the content of config.json.

    Raises:
      BadInput: the folder has no run.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        missing = _missing_file(folder)
        if missing == "config.json" or (missing and not self.members):
            raise BadInput(f"{folder}: has no {missing}; train this run first")
        self.about = _read_json(folder / "config.json")

    @functools.cached_property
    def members(self) -> list[Path]:
        """Return the run folders that this folder averages; [] if a run was trained here."""
        if (self.folder / "history.csv").exists():
            return []
        return [local_path(run) for run in self.options(self.folder)["score.ensemble"]]

    @functools.cached_property
    def chain(self) -> list[Path]:
        """Return the chain of this run; of an ensemble, the first of its longest chains."""
        return max(map(self.chain_of, self.members or [self.folder]), key=len)

    def chain_of(self, run: Path) -> list[Path]:
        """Return the run folders of a chain, from the earliest that exists to `run`."""
        chain, folder = [run], self.init_from(run)
        while folder and not _missing_file(folder) and folder not in chain:
            chain.insert(0, folder)
            folder = self.init_from(folder)
        return chain

    def init_from(self, folder: Path) -> Path | None:
        """Return the run whose weights the run in `folder` started from, or None."""
        options = self.options(folder)
        before = options.get("init_from")
        if before:
            with contextlib.suppress(StoreError):
                fetch(before, kinds=())
        return local_path(before) if before else None

    @property
    def chip_folder(self) -> Path:
        """Return the folder in which the chips' names are found."""
        options = self.options(self.folder)
        return self.root / (options["data.chip_folder"] if options["data.label_file"] else "")

    def options(self, folder: Path) -> dict[str, Any]:
        """Return the options of a run, {"data.size": 128, ...}."""
        return translate_saved(_read_json(folder / "config.json")["config"], folder)

    def steps(self, folder: Path) -> pd.DataFrame:
        """Return steps.csv of a run."""
        return pd.read_csv(folder / "steps.csv")

    def history(self, folder: Path) -> pd.DataFrame:
        """Return history.csv of a run."""
        return pd.read_csv(folder / "history.csv")

    def metrics(self, *names: str) -> dict[str, Any]:
        """Return the content of metrics.json.

        Raises:
          MissingPart: the file does not exist, or one of `names` is missing in it.
        """
        path = self.folder / "metrics.json"
        if not path.exists():
            raise MissingPart(f"No {path} yet: `evaluate` writes it.")
        content = _read_json(path)
        if any(name not in content for name in names):
            raise MissingPart(f"{path} is from another version: run `evaluate` again.")
        return content


def command(name: str, options: dict[str, Any]) -> str:
    """Return the command line that runs `name` with `options`, starting from the defaults."""
    flags = [
        f"--config.{option}={tuple(value) if isinstance(value, list) else value}"
        for option, value in options.items()
        if differs(option, value)
    ]
    start = ["python", "-m", "planet_jax.main", name, "--config", "base"]
    return shlex.join([*start, *flags])


def differs(name: str, value: Any) -> bool:
    """Return whether an option differs from its default; return False for an unknown option."""
    return name in OPTIONS and bool(value != as_json(OPTIONS[name].default))


def _missing_file(folder: Path) -> str:
    """Return the first missing file of REQUIRED, or ''."""
    return next((file for file in REQUIRED if not (folder / file).exists()), "")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: not readable as JSON ({error})") from None
