"""Files that are either whole or not there: written under a temporary name, then renamed.

And folders that are sealed: damage to any byte of theirs is found.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planet_jax.runtime import distributed
from planet_jax.runtime.errors import first_few

SEAL = "digests.json"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], every_host: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; a block that ends well renames it to `path`.

    The file is flushed to the disk before the rename, so that a power cut leaves the old file or
    the new one. A block that raises leaves nothing; what a killed process left is cleared. Of a run
    in several processes the first writes for all; what the others write goes nowhere, save with
    `every_host`.
    """
    path = Path(path)
    if not (every_host or distributed.is_main_process()):
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".tmp-*-{glob.escape(path.name)}"):
        if not _is_running(left_over.name.split("-")[1]):
            left_over.unlink(missing_ok=True)
    # The ending is kept, for it is how pandas, pillow and matplotlib choose a format.
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with add_path_to_errors(path):
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until the disk has a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """A write that fails for want of room does not say where; here it learns to."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `replacing`, for a folder that is not there yet; clears what a killed run left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".tmp-*-{glob.escape(path.name)}"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def lock_folder(folder: Path, wait: bool = True) -> Iterator[None]:
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
    with atomic_file(path) as temporary:
        temporary.write_text(_json(content))


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def seal(folder: Path) -> None:
    """Flushes every file under `folder` to the disk, and writes their SHA-256 to digests.json."""
    digests = {}
    for name, path in _files(folder).items():
        flush(path)
        digests[name] = _sha256(path)
    write_json(folder / SEAL, digests)


def find_damage(folder: Path) -> str:
    """What is not as `seal` left it, in words; '' when every byte is."""
    try:
        text = (folder / SEAL).read_text()
        digests, present = json.loads(text), _files(folder)
        del present[SEAL]
        if text != _json(digests):
            return f"{SEAL} is not as it was written"
        wrong = [f"{name} is missing" for name in digests.keys() - present.keys()]
        wrong += [f"{name} does not belong there" for name in present.keys() - digests.keys()]
        wrong += [
            f"{name} is not as it was written"
            for name, path in present.items()
            if name in digests and _sha256(path) != digests[name]
        ]
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, AttributeError, RecursionError):
        return f"{SEAL} is not as it was written"
    return first_few(sorted(wrong))


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
