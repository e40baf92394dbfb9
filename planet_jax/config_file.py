"""Load config files, and check the flags that name and change them."""

import ast
import difflib
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import tuple_parser

from planet_jax.config import OPTIONS, RENAMED, unknown_option, validate
from planet_jax.runtime.errors import BadInput, did_you_mean

_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
SHIPPED = next(folder for folder in _FOLDERS if folder.is_dir())  # of a wheel, or of a checkout


class TupleParser(tuple_parser.TupleParser):
    """Parse the tuple in a flag: `1e-4,2e-3`, `runs/a,runs/b`, `runs/a` or `('runs/a',)`.

    ml_collections' own parser takes `runs/a,runs/b` as one name.
    """

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Return the tuple; text that is not a Python literal is split at its commas."""
        if not isinstance(argument, str):
            return super().parse(argument)
        try:
            value = ast.literal_eval(argument)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return tuple(item.strip() for item in argument.split(",") if item.strip())
        return tuple(value) if isinstance(value, tuple | list) else (value,)


def check_flags(arguments: Sequence[str]) -> list[str]:
    """Check `--config FILE` and `--config.OPTION` before absl parses them.

    absl's own messages have many lines and do not name the nearest option. Returns the arguments
    with the path of a shipped config in place of its name.

    Raises:
      BadInput: the file does not exist, or a flag or option is unknown.
    """
    flags, checked = ["config", *(f"config.{name}" for name in OPTIONS)], list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        option = name.removeprefix("no").removeprefix("config.")
        if name.startswith(("config.", "noconfig.")):
            if option not in OPTIONS:
                raise BadInput(f"--{unknown_option(option)}")
        elif name == "config" and argument.startswith("-"):
            file = value if equals else next(iter(arguments[i + 1 :]), "")
            path = ":".join(filter(None, _config_path(file)))
            checked[i if equals else i + 1] = f"--config={path}" if equals else path
        elif argument.startswith("--") and (close := difflib.get_close_matches(name, flags, 1)):
            raise BadInput(f"--{name} is not a flag; did you mean --{close[0]}?")
    return checked


def load(file: str, named_by: str = "") -> ConfigDict:
    """Load a config file by path or by name; `FILE:ARGUMENT` calls its get_config(ARGUMENT).

    Args:
      named_by: the config file that names `file`. A relative path is searched in the current
        folder, then in that file's folder, then in the folder above that.

    Raises:
      BadInput: the file does not exist, it fails, or an option in it is wrong.
    """
    path, argument = _config_path(file, named_by)
    try:
        config = runpy.run_path(path)["get_config"](*[argument] * bool(argument))
    except Exception as error:  # a config file can raise anything
        raise file_error(file, error) from error
    validate(config)
    return config


def file_error(file: str, error: Exception) -> BadInput:
    """Return a config file's exception as a one-line BadInput; name a misspelled option."""
    if isinstance(error, BadInput):
        return error
    # ml_collections' message has the last part of the option's name, then all other names.
    unknown = re.match(r'\W*Key "([^"]*)" does not exist', str(error))
    if not unknown:
        return BadInput(f"{file}: failed with {type(error).__name__}: {error}")
    key = unknown[1]
    for old in RENAMED:
        if key == old.rpartition(".")[2]:
            return BadInput(f"{file}: {unknown_option(old)}")
    keys = {name.rpartition(".")[2] for name in OPTIONS}
    return BadInput(f"{file}: {key} is not an option; {did_you_mean(key, keys)}")


def _config_path(file: str, named_by: str = "") -> tuple[str, str]:
    """Split `PATH[:ARGUMENT]` or `NAME[:ARGUMENT]`; raise BadInput if no file is found."""
    name, _, argument = file.partition(":")
    path = Path(name)
    if not path.suffix and path.name == name:
        path = SHIPPED / f"{name}.py"
    if named_by:
        folder = Path(named_by.partition(":")[0]).resolve().parent
        path = next(filter(Path.is_file, (path, folder / path, folder.parent / path)), path)
    if not path.is_file():
        siblings = [] if path.parent == SHIPPED else list(map(str, path.parent.glob("*.py")))
        hint = did_you_mean(name, siblings or [path.stem for path in SHIPPED.glob("*.py")])
        raise BadInput(f"--config={file}: no such file; {hint}")
    return str(path), argument
