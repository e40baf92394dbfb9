"""Atomic writes of files and folders, and digests that reveal a damaged folder."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planet_jax.runtime.errors import first_few

DIGESTS = "digests.json"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; rename it to `path` when the block succeeds.

    A file is flushed first, so a power cut leaves the older file or the new file. A block that
    raises changes nothing. Temporary files and folders of killed processes are deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".tmp-*-{glob.escape(path.name)}"):
        if not _is_running(leftover.name.split("-")[1]):
            _remove(leftover)
    # The suffix stays at the end: pandas, pillow and matplotlib choose a format by it.
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with add_path_to_errors(path):
            yield temporary
            if temporary.is_file():
                fsync(temporary)
            replace(temporary, path)
    finally:
        _remove(temporary)


def replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`, and delete an older file or folder of that name."""
    older = _set_aside(path) if path.is_dir() else None
    os.replace(new, path)
    if older:
        shutil.rmtree(older, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Rename a folder, then delete it, so that its name never refers to a partial folder."""
    shutil.rmtree(_set_aside(folder), ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.rename(folder.with_name(f".old-{uuid.uuid4().hex}-{folder.name}"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Add the path to an OSError that has none: a write to a full disk does not name its file."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)  # another user's process has this id
    return True


@contextlib.contextmanager
def lock_folder(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a folder; the system releases it when the process ends.

    Raises BlockingIOError if another process holds the lock and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; NaN raises ValueError, since most readers refuse it."""
    with atomic_path(path) as temporary:
        temporary.write_text(_to_json(content))


def _to_json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def seal(folder: Path) -> None:
    """Flush every file under `folder` to the disk and write their SHA-256 to digests.json."""
    files = _files(folder)
    for path in files.values():
        fsync(path)
    write_json(folder / DIGESTS, {name: sha256(path) for name, path in files.items()})


def find_damage(folder: Path) -> str:
    """Return how a sealed folder differs from its digests, in words; '' if it does not."""
    try:
        text = (folder / DIGESTS).read_text()
        sealed = json.loads(text)
        actual = {name: sha256(path) for name, path in _files(folder).items() if name != DIGESTS}
        changed = [name for name in sealed.keys() | actual if sealed.get(name) != actual.get(name)]
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, AttributeError, RecursionError):
        return f"{DIGESTS} has changed"
    if text != _to_json(sealed):
        return f"{DIGESTS} has changed"
    return first_few(
        f"{name} {'has changed' if name in actual else 'is missing'}" for name in sorted(changed)
    )


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
