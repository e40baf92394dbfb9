"""A run folder as a reader finds it: its files, the runs before it, the commands that made it."""

import functools
import json
import shlex
from pathlib import Path
from typing import Any

from planet_jax.config import OPTIONS, translate_saved
from planet_jax.runtime.errors import BadInput


class Lacks(Exception):
    """What a part of the report needs is not there; the message says how to get it."""


class RunFolder:
    """A run folder's files, read when first asked for.

    Attributes:
      folder, root: of the run, and of its chips.
      about: config.json.

    Raises:
      BadInput: no run is there.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        if lacking := _lacking(folder):
            raise BadInput(f"{folder}: holds no {lacking}; train this run first")
        self.about = _read_json(folder / "config.json")

    @functools.cached_property
    def chain(self) -> list[Path]:
        """The runs whose weights went on to this one, and it; as far back as they are there."""
        found, folder = [self.folder], self.began_from(self.folder)
        while folder and not _lacking(folder) and folder not in found:
            found.insert(0, folder)
            folder = self.began_from(folder)
        return found

    def began_from(self, folder: Path) -> Path | None:
        """The run whose weights this one started with."""
        options = self.options(folder)
        return Path(options["init_from"]) if options.get("init_from") else None

    def options(self, folder: Path) -> dict[str, Any]:
        """Every option as a run had it."""
        return translate_saved(_read_json(folder / "config.json")["config"], folder)

    def metrics(self, *names: str) -> dict[str, Any]:
        """metrics.json, which must have `names`."""
        if not (self.folder / "metrics.json").exists():
            raise Lacks(f"No {self.folder}/metrics.json yet: `evaluate` writes it.")
        found = _read_json(self.folder / "metrics.json")
        if any(name not in found for name in names):
            raise Lacks(f"{self.folder}/metrics.json is of another version: `evaluate` anew.")
        return found


def command(name: str, options: dict[str, Any]) -> str:
    """The command line that runs `name` with `options` and no config file but the base."""
    flags = [
        f"--config.{option}={tuple(value) if isinstance(value, list) else value}"
        for option, value in options.items()
        if differs(option, value)
    ]
    start = ["python", "-m", "planet_jax.main", name, "--config", "configs/base.py"]
    return shlex.join([*start, *flags])


def differs(name: str, value: Any) -> bool:
    """Whether an option, as config.json has it, is not at its default; one that is gone is not."""
    return name in OPTIONS and bool(value != as_json(OPTIONS[name].default))


def as_json(value: Any) -> Any:
    """A option's value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _lacking(folder: Path) -> str:
    """The first file that every run writes and this one has not, or ''."""
    files = ("config.json", "history.csv", "steps.csv")
    return next((file for file in files if not (folder / file).exists()), "")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: not readable as JSON ({error})") from None
