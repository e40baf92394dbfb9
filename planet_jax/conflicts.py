"""Check what a single option's type and bounds cannot say: conflicts, and the form of its text."""

import itertools
import os
import re

from ml_collections import ConfigDict

from planet_jax.runtime.errors import BadInput

HUB = re.compile(r"hub:(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)


def is_url(path: str) -> bool:
    """Return whether a path is a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def expanded_path(name: str, path: str) -> str:
    """Return the path of an option with `~` and `$NAME` replaced.

    Raises:
      BadInput: a home or variable is not known, or the path is a URL.
    """
    if is_url(path):
        raise BadInput(f"config.{name} = {path!r} is a URL; give a path on this machine's disks")
    expanded = os.path.expanduser(os.path.expandvars(path))
    unknown = re.search(r"^~[^/]*|\$\w+|\$\{\w+\}", expanded)
    if unknown and not os.path.exists(expanded):
        raise BadInput(f"config.{name} = {path!r}: {unknown[0]} is not known here; set it first")
    return expanded


def checked_url(name: str, url: str) -> str:
    """Return the URL of an option without a slash at its end.

    Raises:
      BadInput: the URL names no folder.
    """
    path = url.partition("://")[2].strip("/")
    if not path or {"", ".", ".."} & set(path.split("/")) or set("*?[]") & set(path):
        raise BadInput(
            f"config.{name} = {url!r} must name a folder, as gs://BUCKET/NAME does, without * ? [ ]"
        )
    return url.rstrip("/")


def check_start(config: ConfigDict) -> None:
    """Check the range of the LR-range test, and the weights that the stage starts from.

    Raises:
      BadInput: two options are in conflict.
    """
    if config.lr_range.start_lr >= config.lr_range.end_lr:
        raise BadInput("config.lr_range.start_lr must be below config.lr_range.end_lr")
    if config.init_from and os.path.realpath(config.init_from) == os.path.realpath(config.workdir):
        raise BadInput("config.init_from is config.workdir itself; set workdir to a new folder")
    urls = {
        "workdir": config.workdir, "init_from": config.init_from, "data.root": config.data.root,
        "predict.folder": config.predict.folder,
    }  # fmt: skip
    for outer, inner in itertools.permutations(urls, 2):
        if is_url(urls[outer]) and urls[inner].startswith(f"{urls[outer]}/"):
            raise BadInput(
                f"config.{inner} = {urls[inner]} lies in config.{outer}; keep them side by side"
            )
    model = config.model
    if model.name == "tiny" and model.weights == "imagenet":
        raise BadInput("config.model.name = tiny has no imagenet weights; set model.weights=random")
    if model.weights.startswith("hub:") and not HUB.fullmatch(model.weights):
        raise BadInput(
            f"config.model.weights = {model.weights!r} must be hub:OWNER/NAME or "
            "hub:OWNER/NAME@REVISION"
        )
    if bool(model.mean) != bool(model.std):
        raise BadInput("config.model.mean and config.model.std: set both, or neither")


def check_training(config: ConfigDict) -> None:
    """Check the number of cycles and the labels that exclude each other.

    Raises:
      BadInput: there are more cycles than epochs, or a label alone or twice.
    """
    cycles, epochs, exclusive = config.optim.cycles, config.train.epochs, config.model.exclusive
    if cycles > epochs:
        raise BadInput(
            f"config.optim.cycles = {cycles} must be at most config.train.epochs = {epochs}"
        )
    if len(exclusive) == 1 or len(set(exclusive)) < len(exclusive):
        raise BadInput("config.model.exclusive: name at least two labels, each once")


def check_layout(data: ConfigDict) -> None:
    """Check the options of labels and split (section `data`).

    Raises:
      BadInput: two options are in conflict, or one has a wrong form.
    """
    if data.delimiter not in ("tab", "\\t") and (
        len(data.delimiter) != 1 or data.delimiter in '"\n'
    ):
        raise BadInput(f"config.data.delimiter = {data.delimiter!r} must be one character, or tab")
    splits = ("valid_file", "valid_column", "valid_folder", "folds")
    for names in (splits, ("group_column", "group_pattern")):
        if len(used := [f"config.data.{name}" for name in names if data[name]]) > 1:
            raise BadInput(f"{' and '.join(used)} exclude each other; set one of them")
    if data.source != "folder" and is_url(data.root):
        raise BadInput(f"config.data.root is a URL: it cannot be filled from {data.source}")
    columns = ("valid_column", "group_column", "label_columns")
    if not data.label_file and (used := [name for name in columns if data[name]]):
        raise BadInput(f"config.data.{used[0]} is a column: it needs config.data.label_file")
    if data.label_file and data.valid_folder:
        raise BadInput("config.data.valid_folder holds a folder per label: set data.label_file=''")
    if data.folds == 1 or data.fold >= max(data.folds, 1):
        raise BadInput(
            f"config.data.fold = {data.fold} must be below config.data.folds = {data.folds}, "
            "and folds 0 or at least 2"
        )
    try:
        re.compile(data.group_pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(
            f"config.data.group_pattern = {data.group_pattern!r}: "
            f"not a regular expression ({error})"
        ) from None


def check_hosts(hosts: ConfigDict) -> None:
    """Check the options of a run's processes (section `hosts`).

    Raises:
      BadInput: two options are in conflict, or the address has a wrong form.
    """
    if hosts.coordinator in ("", "auto"):
        if hosts.count or hosts.index:
            raise BadInput(
                "config.hosts.count and config.hosts.index need config.hosts.coordinator: "
                "ADDRESS:PORT of process 0, the same in every process"
            )
        return
    address, _, port = hosts.coordinator.rpartition(":")
    if not (address and port.isdecimal() and 0 < int(port) < 2**16):
        raise BadInput(
            f"config.hosts.coordinator = {hosts.coordinator!r} must be ADDRESS:PORT, auto or ''"
        )
    if hosts.index >= hosts.count:
        raise BadInput(
            f"config.hosts.index = {hosts.index} must be below config.hosts.count = {hosts.count}: "
            "give every process the count, and an index from 0"
        )
