"""The competition's files from Kaggle: listed, downloaded, unpacked, checked against the CSV."""

import contextlib
import csv
import errno
import io
import os
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import atomic_file, atomic_folder
from planet_jax.runtime.progress import notify, progress

DOWNLOADS = ".downloads"  # where archives wait, in the root, until they are unpacked
MANY = 2000  # files; whoever lists as many lists loose chips, and listing all takes minutes


class _NotThere(BadInput):
    """This source does not give the file; another one may."""


def fetch(
    root: Path,
    *,
    competition: str = "planet-understanding-the-amazon-from-space",
    mirror: str = "",
    test: bool = False,
) -> None:
    """Leaves the competition's CSV and chips in `root` as its own archives unpack.

    These are `train_v2.csv` and `train-jpg/`; with `test` also `sample_submission_v2.csv`,
    `test-jpg/` and `test-jpg-additional/`. What is there is checked and kept, an archive put into
    `root` by hand is unpacked, and the rest comes from `competition` or, where that does not give
    it, from the Kaggle data set `mirror` ("owner/slug"). A run that was killed is continued.

    Raises BadInput if Kaggle or the network refuses, no source has a file, an archive is damaged,
    hostile or not what its name says, a chip of the CSV is missing, or the disk is too small.
    """
    if not re.fullmatch(r"[\w-]+", competition):
        raise BadInput(f"competition {competition!r}: give the name that is in its address")
    if not re.fullmatch(r"([\w-]+/[\w-]+)?", mirror):
        raise BadInput(f"data.kaggle_mirror {mirror!r}: give a Kaggle data set as owner/slug")
    files = _Files(Path(root), [competition, mirror] if mirror else [competition])
    try:
        files.chips("train-jpg", files.names("train_v2.csv"))
        if test:
            names = files.names("sample_submission_v2.csv")
            additional = {name for name in names if name.startswith("file_")}
            files.chips("test-jpg", [name for name in names if name not in additional])
            # Whoever unpacks by hand may keep both kinds in test-jpg.
            if rest := additional - _chips_in(files.root / "test-jpg"):
                files.chips("test-jpg-additional", sorted(rest))
        files.forget([_all_of(source) for source in files.sources])
        with contextlib.suppress(OSError):
            files.downloads.rmdir()
    except OSError as error:
        what = f"{error.filename or root}: {error.strerror or error}"
        raise BadInput(f"{what}; mend that or choose another folder") from error


class _Files:
    """The files in `root`, and the sources of those that are not there yet."""

    def __init__(self, root: Path, sources: list[str]) -> None:
        self.root, self.downloads = root, root / DOWNLOADS
        self.sources = sources
        self.listings: dict[str, dict[str, int]] = {}

    def names(self, table: str) -> list[str]:
        """The image names in the CSV `table`, which is fetched if it is not there."""
        target = self.root / table
        wanted = (f"{table}.zip", table)
        if not target.is_file():
            archive = self.obtain(wanted)
            with _reading(archive):
                content = _table_in(archive, table)
                _image_names(content)  # a wrong file must not get the right name
            with atomic_file(target, every_host=True) as temporary:
                temporary.write_bytes(content)
        self.forget(wanted)
        for left_over in self.root.glob(f".tmp-*-{table}"):
            left_over.unlink()
        with _reading(target):
            return _image_names(target.read_bytes())

    def chips(self, folder: str, names: list[str]) -> None:
        """Sees to it that `folder` holds a chip for every name."""
        target = self.root / folder
        wanted = (f"{folder}.tar.7z", f"{folder}.tar", f"{folder}.zip")
        if not target.is_dir():
            archive = self.obtain(wanted)
            with _reading(archive), atomic_folder(target) as temporary:
                _unpack(archive, folder, temporary, len(names))
                _check(temporary, names)
                if hasattr(os, "sync"):
                    os.sync()  # or a power cut may keep the folder's new name and not its chips
        self.forget(wanted)
        with _reading(target):
            _check(target, names)

    def obtain(self, wanted: Sequence[str]) -> Path:
        """A whole file of one of the `wanted` names: as it lies there, or downloaded."""
        for path in (folder / name for folder in (self.root, self.downloads) for name in wanted):
            if path.is_file():
                return path
        reasons = []
        for source in self.sources:
            try:
                return self._download(source, wanted)
            except _NotThere as reason:
                reasons.append(str(reason))
                notify(reasons[-1])
        raise BadInput(
            f"{'; '.join(reasons)}; or set data.kaggle_mirror to a Kaggle data set (owner/slug) "
            f"that has it, or put {wanted[0]} into {self.root} by hand"
        )

    def _download(self, source: str, wanted: Sequence[str]) -> Path:
        if source not in self.listings:
            self.listings[source] = _listing(source)
        paths = {PurePosixPath(path).name: path for path in self.listings[source]}
        name = next((name for name in wanted if name in paths), _all_of(source))
        loose = name not in wanted  # then everything comes, as one zip
        if loose and not any(path.endswith(".jpg") for path in paths):
            few = first_few(paths) or "nothing"
            raise _NotThere(f"{source} lists no {wanted[0]} (it lists {few})")
        whole, part = self.downloads / name, self.downloads / f"{name}.part"
        if whole.is_file():
            return whole
        # A folder, since the kaggle package chooses the file's name; what lies there may be half.
        part.mkdir(parents=True, exist_ok=True)
        size = 0 if loose else self.listings[source][paths[name]]
        _need(part, 3.3 * size - _bytes_in(part), f"{name}, its tar and its chips")
        with _watched(f"downloading {name}", part, size):
            call, *path = ["download_files"] if loose else ["download_file", paths[name]]
            _kaggle(source, call, *path, path=str(part), quiet=True)
        landed = {path.name: path for path in part.iterdir() if path.suffix != ".kaggle-partial"}
        # What is zipped on its way has another name, and not the listed size.
        got = landed[name].stat().st_size if name in landed else size
        if len(landed) != 1 or (size and got != size):
            shutil.rmtree(part)
            raise BadInput(f"{name}: {got} bytes came where {size} are listed; run again")
        os.replace(next(iter(landed.values())), whole)
        shutil.rmtree(part)
        return whole

    def forget(self, wanted: Sequence[str]) -> None:
        """Deletes downloads that have been unpacked or are no longer needed."""
        for name in wanted:
            (self.downloads / name).unlink(missing_ok=True)
            shutil.rmtree(self.downloads / f"{name}.part", ignore_errors=True)


def _all_of(source: str) -> str:
    return f"{source.replace('/', '-')}.zip"


def _listing(source: str) -> dict[str, int]:
    """Path and size in bytes (0: not known) of what `source` lists, the first `MANY` at least."""
    found: dict[str, int] = {}
    token = None
    for _ in range(100):
        page = _kaggle(source, "list_files", page_token=token, page_size=200)
        found |= {file.name or "": file.total_bytes or 0 for file in page.files}
        token = page.next_page_token
        if not token or len(found) >= MANY:
            break
    return found


def _kaggle(source: str, call: str, *args: str, **options: Any) -> Any:
    """Calls the kaggle package; makes one line of what it raises, and keeps it off stdout."""
    import requests

    kind = "dataset" if "/" in source else "competition"
    page = f"https://www.kaggle.com/{'datasets' if '/' in source else 'c'}/{source}"
    token = "make a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN to it"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from kaggle.api.kaggle_api_extended import KaggleApi  # slow, and it authenticates

            api = KaggleApi()
            api.authenticate()
            return getattr(api, f"{kind}_{call}")(source, *args, **options)
    except SystemExit as error:
        raise BadInput(f"no Kaggle credentials, or expired ones: {token}") from error
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code == 401:
            raise BadInput(f"Kaggle does not take the credentials (401): {token}") from error
        if code == 403:
            todo = f"see {page}" if "/" in source else f"accept the rules at {page}/rules"
            raise _NotThere(f"Kaggle refuses {source} (403): {todo}") from error
        if code == 404:
            lack = " in ".join([*args, source])
            raise _NotThere(f"Kaggle has no {lack} (404): see {page}") from error
        raise BadInput(f"Kaggle answers {code} ({error}): run again later") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"Kaggle answers {source} with something odd: {error}") from error
    except requests.RequestException as error:
        what = f"{type(error).__name__}: {error}"
        raise BadInput(f"the network or Kaggle is down, run again to continue ({what})") from error


@contextlib.contextmanager
def _watched(what: str, folder: Path, size: int) -> Iterator[None]:
    """Shows how many MB of `size` bytes (0: not known) lie in `folder` while the block runs."""
    total, done = max(1, size // 10**6), _bytes_in(folder) // 10**6
    stop = threading.Event()
    with progress(what, total, "MB", done) as advance:

        def watch() -> None:
            nonlocal done
            while not stop.wait(1 if size else 10):
                before, done = done, _bytes_in(folder) // 10**6
                advance(done - before)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        advance(max(0, total - done))


def _bytes_in(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # the block may delete what is counted here
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def _need(folder: Path, size: float, what: str) -> None:
    """Raises now the OSError that the disk would raise after minutes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        lack = f"{what} need {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free"
        raise OSError(errno.ENOSPC, lack, str(folder))


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Says which archive is bad; deletes it if it is a download, or each run would meet it."""
    try:
        yield
    except OSError:  # the disk's fault
        raise
    except Exception as error:  # on damaged bytes the readers raise all sorts
        advice = "replace it or delete it"
        if archive.parent.name == DOWNLOADS:
            archive.unlink()
            advice = "run again to download it anew, or place a right one by hand"
        damage = f"damaged, or not what its name says: {type(error).__name__} {error}"
        what = error if isinstance(error, BadInput) else damage
        raise BadInput(f"{archive}: {what}; {advice}") from error


def _unpack(archive: Path, folder: str, out: Path, count: int) -> None:
    """Writes the chips that `archive` has in `folder` straight into `out`."""
    with open(archive, "rb") as file:
        seven = file.read(6) == b"7z\xbc\xaf\x27\x1c"
    tar = _tar_in(archive, out) if seven else archive
    _need(out, 1.2 * tar.stat().st_size, f"the chips in {tar.name}")
    chips = _from_zip if zipfile.is_zipfile(tar) else _from_tar
    with progress(f"unpacking {folder}", count, "chips") as advance:
        for _ in chips(tar, folder, out):
            advance()
    if seven:
        tar.unlink()


def _tar_in(archive: Path, out: Path) -> Path:
    import py7zr

    with py7zr.SevenZipFile(archive) as seven:
        tars = [entry for entry in seven.list() if re.fullmatch(r"[\w-]+\.tar", entry.filename)]
        if len(tars) != 1 or not tars[0].is_file:
            raise BadInput(f"holds {first_few(seven.getnames())} where one .tar was expected")
        size = tars[0].uncompressed
        _need(out, 2.2 * size, f"the tar in {archive.name} and its chips")
        with _watched(f"unpacking {archive.name}", out, size):
            seven.extract(out, [tars[0].filename])  # and compares the CRC
    return out / tars[0].filename


def _from_tar(archive: Path, folder: str, out: Path) -> Iterator[str]:
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


def _from_zip(archive: Path, folder: str, out: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            path = PurePosixPath(info.filename)
            if path.is_absolute() or ".." in path.parts:
                raise BadInput(f"holds {info.filename!r}, which would leave the folder")
            if path.match(f"{folder}/*.jpg") and not path.name.startswith("._"):
                with zipped.open(info) as chip, open(out / path.name, "wb") as file:
                    shutil.copyfileobj(chip, file)
                yield path.name


def _table_in(archive: Path, table: str) -> bytes:
    if not zipfile.is_zipfile(archive):
        return archive.read_bytes()
    with zipfile.ZipFile(archive) as zipped:
        entries = [i for i in zipped.infolist() if PurePosixPath(i.filename).name == table]
        if not entries or entries[0].file_size > 10**8:
            raise BadInput(f"holds {first_few(zipped.namelist())} where {table} was expected")
        return zipped.read(entries[0])


def _image_names(content: bytes) -> list[str]:
    table = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header, *rows = [row for row in table if row] or [[]]
    if header != ["image_name", "tags"] or not rows or any(len(row) != 2 for row in rows):
        raise BadInput(f"no table of image_name,tags (it begins with {content[:30]!r})")
    return [name for name, _ in rows]


def _chips_in(folder: Path) -> set[str]:
    return {name.removesuffix(".jpg") for name in os.listdir(folder) if name.endswith(".jpg")}


def _check(folder: Path, names: list[str]) -> None:
    there = _chips_in(folder)
    if missing := [f"{name}.jpg" for name in names if name not in there]:
        lack = f"{len(missing)} of the CSV's {len(names)} chips are missing"
        raise BadInput(f"{lack} ({first_few(missing)})")
