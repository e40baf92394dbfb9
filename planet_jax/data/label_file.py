"""Read a label file: a table with a row per chip, in any of the layouts of docs/data.md."""

import ast
import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify

TRAIN, VALID, NEITHER = "train", "valid", ""  # a chip's part in the split
ROLES = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "valid", "val", "validation", "dev"), VALID),
    **dict.fromkeys(("0", "0.0", "false", "no", "train", "training", ""), TRAIN),
    **dict.fromkeys(("test", "testing"), NEITHER),
}
ONE_HOT = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "false", ""), False),
}
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
NUMPY_LIST = re.compile(rf"\[\s*(?:{QUOTED.pattern})(?:\s+(?:{QUOTED.pattern}))+\s*\]")


class LabelRows(NamedTuple):
    """The labeled chips, in file order.

    Attributes:
      names, tags: each chip's name and labels.
      classes: labels that exist even if no chip has them.
      groups, roles: each chip's group and part in the split; empty if the layout has none.
    """

    names: list[str]
    tags: list[list[str]]
    classes: Sequence[str] = ()
    groups: Sequence[str] = ()
    roles: Sequence[str] = ()


def clean_label(text: str) -> str:
    """Return a label in Unicode's composed form, with single spaces between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def read(path: Path, data: ConfigDict) -> LabelRows:
    """Read the label file that the config's section `data` describes.

    Raises:
      BadInput: the file does not exist or is not a table; a column or all rows are missing; a cell
        does not have the format of `data.label_format`.
    """
    table = _read_table(path, {"tab": "\t", "\\t": "\t"}.get(data.delimiter, data.delimiter))
    others = [c for c in (data.valid_column, data.group_column) if c]
    columns = list(data.label_columns)
    if not columns and data.label_format == "one_hot":
        columns = [c for c in table.columns if c and c not in (data.name_column, *others)]
    columns = columns or ["tags"]
    _check_columns(path, table, [data.name_column, *columns, *others])
    names = [name.strip() for name in table[data.name_column]]
    untidy = table[data.name_column] != names
    names = [name.replace("\\", "/").removeprefix("./") for name in names]  # as Windows writes them
    if data.label_format == "one_hot":
        tags = _one_hot(path, table[columns])
    else:
        tags = [[] for _ in names]
        for column in columns:
            for row, cell in zip(tags, table[column], strict=True):
                row += _labels_in(path, cell, data)
        if data.label_format == "text" and data.label_delimiter == " ":
            for column in columns:
                untidy |= table[column] != [" ".join(cell.split()) for cell in table[column]]
    if untidy.any():
        notify(f"{path}: extra spaces in {untidy.sum()} rows are ignored")
    groups = _groups(table[data.group_column], names) if data.group_column else ()
    roles = _roles(path, table[data.valid_column]) if data.valid_column else ()
    classes = [clean_label(c) for c in columns] if data.label_format == "one_hot" else ()
    return LabelRows(names, tags, classes, groups, roles)


def _read_table(path: Path, delimiter: str) -> pd.DataFrame:
    """Read the table as text; remove spaces around its headers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns of some damage
            table = pd.read_csv(
                path, sep=delimiter, dtype=str, keep_default_na=False, header=None,
                skipinitialspace=True, encoding="utf-8-sig",
            )  # fmt: skip
    except FileNotFoundError:
        raise BadInput(
            f"{path}: no label file; set config.data.root to a folder that has one, or "
            "config.data.label_file to its name ('': a folder per label)"
        ) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not readable as CSV ({error}); save it as UTF-8") from None
    except (ValueError, Warning, OSError) as error:  # pandas' own errors are ValueErrors
        raise BadInput(f"{path}: not readable as CSV ({error})") from None
    table.columns = [unicodedata.normalize("NFC", cell.strip()) for cell in table.iloc[0]]
    return table.iloc[1:].reset_index(drop=True)


def _check_columns(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> None:
    header = list(table.columns)
    if missing := [column for column in columns if column not in header]:
        other = [mark for mark in (";", "\t", "|", ",") if len(header) == 1 and mark in header[0]]
        hint = "set config.data.name_column and data.label_columns"
        if other:
            hint = f"set config.data.delimiter={'tab' if other[0] == chr(9) else repr(other[0])}"
        raise BadInput(
            f"{path}: no column {' and '.join(missing)} in its first line "
            f"({first_few(map(repr, header), 5)}); {hint}"
        )
    if repeated := [column for column in columns if header.count(column) > 1]:
        raise BadInput(f"{path}: its first line has the column {repeated[0]} twice; rename one")
    if table.empty:
        raise BadInput(f"{path}: has no rows; give it a line for each chip")


def _labels_in(path: Path, cell: str, data: ConfigDict) -> list[str]:
    """Return the labels in one cell, which holds text or a list."""
    if data.label_format == "list":
        parts = _parse_list(path, cell)
    elif data.label_delimiter == " ":
        parts = cell.split()
    else:
        parts = cell.split(data.label_delimiter) if data.label_delimiter else [cell]
    return [label for label in map(clean_label, parts) if label]


def _parse_list(path: Path, cell: str) -> list[str]:
    """Parse a Python or JSON list, numpy's `['a' 'b']`, or `[a, b]` without quotes."""
    text = cell.strip()
    if text.startswith("[") and text.endswith("]") and not re.search("['\"]", text):
        return text[1:-1].split(",")
    if NUMPY_LIST.fullmatch(text):
        text = f"[{','.join(QUOTED.findall(text))}]"
    try:
        value = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list | tuple | set) or not all(isinstance(v, str) for v in value):
        raise BadInput(
            f"{path}: {cell[:60]!r} is not a list of labels such as ['a', 'b']; "
            "set config.data.label_format=text"
        )
    return sorted(value)


def _one_hot(path: Path, table: pd.DataFrame) -> list[list[str]]:
    """Return each row's labels from columns of 0 and 1 (or true and false; blank is 0)."""
    tags: list[list[str]] = [[] for _ in range(len(table))]
    for column in table.columns:
        cells, label = table[column], clean_label(column)
        meaning = {cell: ONE_HOT.get(cell.strip().lower()) for cell in cells.unique()}
        if unknown := sorted(cell for cell, has_label in meaning.items() if has_label is None):
            raise BadInput(
                f"{path}: the column {column} holds {unknown[0]!r}, not 0 or 1; name the columns "
                "of labels in config.data.label_columns"
            )
        for row in np.flatnonzero(cells.map(meaning)):
            tags[row].append(label)
    return tags


def _groups(cells: pd.Series, names: list[str]) -> list[str]:
    """Return each chip's group; a chip without a group forms its own."""
    return [cell.strip() or f"\0{name}" for cell, name in zip(cells, names, strict=True)]


def _roles(path: Path, cells: pd.Series) -> list[str]:
    words = cells.str.strip().str.lower()
    if unknown := sorted(set(words) - ROLES.keys()):
        raise BadInput(
            f"{path}: config.data.valid_column holds {unknown[0]!r}; a chip that validates has "
            "valid or 1, one that trains has train or 0, one left out has test"
        )
    return [ROLES[word] for word in words]
