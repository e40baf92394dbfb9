"""Files that are either whole or not there: written under a temporary name, then renamed."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; a block that ends well renames it to `path`.

    The file is flushed to the disk before the rename, so that a power cut leaves the old file or
    the new one. A block that raises leaves nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending is kept, for it is how pandas, pillow and matplotlib choose a format.
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `replacing`, for a folder that is not there yet; clears what a killed run left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".tmp-*-{path.name}"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Keeps other processes out of the same folder; the lock goes with the process.

    Raises:
      BlockingIOError: another process is in there, and this one does not `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes `content` as indented JSON; a NaN is refused, since no other reader takes one."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
