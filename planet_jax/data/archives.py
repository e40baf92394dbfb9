"""Unpack the competition's archives: .tar.7z, .tar or .zip of chips, and zipped CSV tables.

Every reader checks that the archive holds the expected entries and that no entry's path leads out
of the folder. Damaged bytes raise many kinds of exception here; the caller catches them all.
"""

import contextlib
import csv
import errno
import io
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import progress

SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c"  # the first bytes of a .7z file


def unpack_chips(archive: Path, folder: str, out: Path, count: int) -> None:
    """Extract the chips in the archive's `folder` directly into `out`.

    Args:
      count: the number of chips expected, for the progress bar.

    Raises:
      BadInput: the archive holds other entries, or an entry's path leads out of `out`.
      OSError: the disk is full or too small.
    """
    with open(archive, "rb") as file:
        is_seven = file.read(len(SEVEN_ZIP)) == SEVEN_ZIP
    tar = _extract_tar(archive, out) if is_seven else archive
    require_space(out, 1.2 * tar.stat().st_size, f"the chips in {tar.name}")
    extract = _extract_zip if zipfile.is_zipfile(tar) else _extract_tar_chips
    with progress(f"unpacking {folder}", count, "chips") as advance:
        for _ in extract(tar, folder, out):
            advance()
    if is_seven:
        tar.unlink()


def _extract_tar(archive: Path, out: Path) -> Path:
    """Extract the only .tar in a .7z, check its CRC, and return its path."""
    import py7zr

    with py7zr.SevenZipFile(archive) as seven:
        tars = [entry for entry in seven.list() if re.fullmatch(r"[\w-]+\.tar", entry.filename)]
        if len(tars) != 1 or not tars[0].is_file:
            raise BadInput(f"holds {first_few(seven.getnames())} where one .tar was expected")
        size = tars[0].uncompressed
        require_space(out, 2.2 * size, f"the tar in {archive.name} and its chips")
        with show_growth(f"unpacking {archive.name}", out, size):
            seven.extract(out, [tars[0].filename])
    return out / tars[0].filename


def _extract_tar_chips(archive: Path, folder: str, out: Path) -> Iterator[str]:
    """Extract `folder`/*.jpg and yield each name."""
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.name.startswith("._") or (member.isdir() and str(path) in (".", folder)):
                continue  # macOS adds a ._file to every file
            if not member.isreg() or str(path.parent) != folder or path.name == "..":
                raise BadInput(f"holds {member.name!r} where only {folder}/*.jpg was expected")
            if path.suffix == ".jpg":
                tar.extract(member.replace(name=path.name, deep=False), out, filter="data")
                yield path.name


def _extract_zip(archive: Path, folder: str, out: Path) -> Iterator[str]:
    """Extract `folder`/*.jpg at any depth and yield each name."""
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            path = PurePosixPath(info.filename)
            if path.is_absolute() or ".." in path.parts:
                raise BadInput(f"holds {info.filename!r}, which would leave the folder")
            if path.match(f"{folder}/*.jpg") and not path.name.startswith("._"):
                with zipped.open(info) as chip, open(out / path.name, "wb") as file:
                    shutil.copyfileobj(chip, file)
                yield path.name


def read_table(archive: Path, name: str) -> bytes:
    """Return the bytes of the CSV `name`, which may be zipped.

    Raises:
      BadInput: the zip file has no such table, or the table is over 100 MB.
    """
    if not zipfile.is_zipfile(archive):
        return archive.read_bytes()
    with zipfile.ZipFile(archive) as zipped:
        entries = [i for i in zipped.infolist() if PurePosixPath(i.filename).name == name]
        if not entries or entries[0].file_size > 10**8:
            raise BadInput(f"holds {first_few(zipped.namelist())} where {name} was expected")
        return zipped.read(entries[0])


def image_names(content: bytes) -> list[str]:
    """Return the first column of a CSV with the columns image_name,tags.

    Raises:
      BadInput: the content is not such a table, or the table has no rows.
    """
    table = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header, *rows = [row for row in table if row] or [[]]
    if header != ["image_name", "tags"] or not rows or any(len(row) != 2 for row in rows):
        raise BadInput(f"not a table of image_name,tags (it begins with {content[:30]!r})")
    return [name for name, _ in rows]


def require_space(folder: Path, size: float, what: str) -> None:
    """Raise OSError (ENOSPC) if the disk has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        problem = f"{what} need {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free"
        raise OSError(errno.ENOSPC, problem, str(folder))


@contextlib.contextmanager
def show_growth(what: str, folder: Path, size: int) -> Iterator[None]:
    """Show the MB in `folder` while the block runs; `size` bytes are expected (0: unknown)."""
    total, done = max(1, size // 10**6), bytes_in(folder) // 10**6
    stop = threading.Event()
    with progress(what, total, "MB", done) as advance:

        def watch() -> None:
            nonlocal done
            while not stop.wait(1 if size else 10):
                before, done = done, bytes_in(folder) // 10**6
                advance(done - before)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        advance(max(0, total - done))


def bytes_in(folder: Path) -> int:
    """Return the size of all files in `folder`."""
    with contextlib.suppress(FileNotFoundError):  # the block may delete files meanwhile
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0
