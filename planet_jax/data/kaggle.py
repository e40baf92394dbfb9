"""Fetch the competition's files from Kaggle: list, download, unpack, check against the CSV."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from planet_jax.data import archives
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import atomic_path
from planet_jax.runtime.progress import notify

DOWNLOADS = ".downloads"  # folder in the root for archives that are not unpacked yet
MANY = 2000  # files; a longer list holds single chips, and reading all of it takes minutes


class _NotAvailable(BadInput):
    """This source does not offer the file, but another source may."""


def fetch(
    root: Path,
    *,
    competition: str = "planet-understanding-the-amazon-from-space",
    mirror: str = "",
    test: bool = False,
) -> None:
    """Fetch the competition's files that `root` does not have.

    The files are `train_v2.csv` and `train-jpg/`; with `test` also `sample_submission_v2.csv`,
    `test-jpg/` and `test-jpg-additional/`. Files already in `root` are checked and kept, and an
    archive placed there by hand is unpacked. The rest is downloaded from `competition`, or from
    the Kaggle data set `mirror` ("owner/slug") if the competition does not offer it. An interrupted
    download is resumed.

    Raises:
      BadInput: Kaggle or the network fails; no source has a file; an archive is damaged, unsafe
        or holds other files; a chip of the CSV is missing; the disk is too small.
    """
    if not re.fullmatch(r"[\w-]+", competition):
        raise BadInput(
            f"config.data.kaggle_competition = {competition!r}: must be its name on kaggle.com"
        )
    if not re.fullmatch(r"([\w-]+/[\w-]+)?", mirror):
        raise BadInput(f"config.data.kaggle_mirror = {mirror!r}: must be a data set, owner/slug")
    files = _Files(Path(root), [competition, mirror] if mirror else [competition])
    try:
        files.require_chips("train-jpg", files.image_names("train_v2.csv"))
        if test:
            names = files.image_names("sample_submission_v2.csv")
            additional = {name for name in names if name.startswith("file_")}
            files.require_chips("test-jpg", [name for name in names if name not in additional])
            # A test-jpg folder that was unpacked by hand may hold both kinds.
            if rest := additional - _chip_names(files.root / "test-jpg"):
                files.require_chips("test-jpg-additional", sorted(rest))
        files.delete_downloads([_zip_of_all(source) for source in files.sources])
        with contextlib.suppress(OSError):
            files.downloads.rmdir()
    except OSError as error:
        what = f"{error.filename or root}: {error.strerror or error}"
        raise BadInput(f"{what}; fix that or set config.data.root to another folder") from error


class _Files:
    """The files in `root`, and the sources of missing files."""

    def __init__(self, root: Path, sources: list[str]) -> None:
        self.root, self.downloads = root, root / DOWNLOADS
        self.sources = sources
        self.listings: dict[str, dict[str, int]] = {}

    def image_names(self, table: str) -> list[str]:
        """Return the image names in the CSV `table`; fetch the CSV if it is missing."""
        target = self.root / table
        wanted = (f"{table}.zip", table)
        if not target.is_file():
            archive = self._find_or_download(wanted)
            with _report_damage(archive):
                content = archives.read_table(archive, table)
                archives.image_names(content)  # check the table before it is written
            with atomic_path(target) as temporary:
                temporary.write_bytes(content)
        self.delete_downloads(wanted)
        with _report_damage(target):
            return archives.image_names(target.read_bytes())

    def require_chips(self, folder: str, names: list[str]) -> None:
        """Unpack the archive of a missing `folder`; check that the folder has every chip."""
        target = self.root / folder
        wanted = (f"{folder}.tar.7z", f"{folder}.tar", f"{folder}.zip")
        if not target.is_dir():
            archive = self._find_or_download(wanted)
            with _report_damage(archive), atomic_path(target) as temporary:
                temporary.mkdir()
                archives.unpack_chips(archive, folder, temporary, len(names))
                _check_chips(temporary, names)
                os.sync()  # otherwise a power cut may leave the renamed folder without its chips
        self.delete_downloads(wanted)
        with _report_damage(target):
            _check_chips(target, names)

    def _find_or_download(self, wanted: Sequence[str]) -> Path:
        """Find or download one of the `wanted` files; return the path of the complete file."""
        for path in (folder / name for folder in (self.root, self.downloads) for name in wanted):
            if path.is_file():
                return path
        reasons = []
        for source in self.sources:
            try:
                return self._download(source, wanted)
            except _NotAvailable as reason:
                reasons.append(str(reason))
                notify(reasons[-1])
        raise BadInput(
            f"{'; '.join(reasons)}; set config.data.kaggle_mirror to a Kaggle data set "
            f"(owner/slug) that has this file, or put {wanted[0]} into {self.root} by hand"
        )

    def _download(self, source: str, wanted: Sequence[str]) -> Path:
        """Download one of the `wanted` files, or one zip of all if `source` lists single chips."""
        if source not in self.listings:
            self.listings[source] = _list_files(source)
        listing = self.listings[source]
        paths = {PurePosixPath(path).name: path for path in listing}
        name, size, call = _zip_of_all(source), 0, ["download_files"]
        if listed := [name for name in wanted if name in paths]:
            name = listed[0]
            size, call = listing[paths[name]], ["download_file", paths[name]]
        elif not any(path.endswith(".jpg") for path in paths):
            few = first_few(paths) or "nothing"
            raise _NotAvailable(f"{source} lists no {wanted[0]} (it lists {few})")
        target, part = self.downloads / name, self.downloads / f"{name}.part"
        if target.is_file():
            return target
        # `part` is a folder, because the kaggle package names the file. It may have a partial file.
        part.mkdir(parents=True, exist_ok=True)
        missing = 3.3 * size - archives.bytes_in(part)
        archives.require_space(part, missing, f"{name}, its tar and its chips")
        with archives.show_growth(f"downloading {name}", part, size):
            _call_kaggle(source, *call, path=str(part), quiet=True)
        os.replace(_downloaded_file(part, name, size), target)
        shutil.rmtree(part)
        return target

    def delete_downloads(self, names: Sequence[str]) -> None:
        """Delete downloads that are unpacked or no longer needed."""
        for name in names:
            (self.downloads / name).unlink(missing_ok=True)
            shutil.rmtree(self.downloads / f"{name}.part", ignore_errors=True)


def _downloaded_file(part: Path, name: str, size: int) -> Path:
    """Return the only file in `part`, which must have `size` bytes unless `size` is 0.

    A file that Kaggle zips for the download has another name, and its size is not checked.
    """
    files = {path.name: path for path in part.iterdir() if path.suffix != ".kaggle-partial"}
    received = files[name].stat().st_size if name in files else size
    if len(files) != 1 or (size and received != size):
        shutil.rmtree(part)
        raise BadInput(
            f"{name}: {received} of {size} bytes in {len(files)} files received; run again"
        )
    return next(iter(files.values()))


def _zip_of_all(source: str) -> str:
    return f"{source.replace('/', '-')}.zip"


def _list_files(source: str) -> dict[str, int]:
    """Map the paths in `source` to sizes in bytes (0 if unknown); stop at MANY or more paths."""
    listing: dict[str, int] = {}
    token = None
    for _ in range(100):
        page = _call_kaggle(source, "list_files", page_token=token, page_size=200)
        listing |= {file.name or "": file.total_bytes or 0 for file in page.files}
        token = page.next_page_token
        if not token or len(listing) >= MANY:
            break
    return listing


def _call_kaggle(source: str, call: str, *args: str, **options: Any) -> Any:
    """Call the kaggle package; suppress its output, and reduce each of its errors to one line."""
    import requests

    kind = "dataset" if "/" in source else "competition"
    page = f"https://www.kaggle.com/{'datasets' if '/' in source else 'c'}/{source}"
    advice = "make a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN to it"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from kaggle.api.kaggle_api_extended import (
                KaggleApi,
            )  # the import is slow, and authenticates

            api = KaggleApi()
            api.authenticate()
            return getattr(api, f"{kind}_{call}")(source, *args, **options)
    except SystemExit as error:
        raise BadInput(f"no Kaggle credentials, or expired ones: {advice}") from error
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code == 401:
            raise BadInput(f"Kaggle rejects the credentials (401): {advice}") from error
        if code == 403:
            cure = f"see {page}" if "/" in source else f"accept the rules at {page}/rules"
            raise _NotAvailable(f"Kaggle refuses {source} (403): {cure}") from error
        if code == 404:
            missing = " in ".join([*args, source])
            raise _NotAvailable(f"Kaggle has no {missing} (404): see {page}") from error
        raise BadInput(f"Kaggle answers {code} ({error}): run again later") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"Kaggle's answer about {source} cannot be read: {error}") from error
    except requests.RequestException as error:
        what = f"{type(error).__name__}: {error}"
        raise BadInput(f"the network or Kaggle is down, run again to continue ({what})") from error


@contextlib.contextmanager
def _report_damage(archive: Path) -> Iterator[None]:
    """Report a file reader's error in one line; delete `archive` if it is a download.

    If a damaged download were kept, every later run would fail.
    """
    try:
        yield
    except OSError:  # an error of the disk, not damaged bytes
        raise
    except Exception as error:  # the readers raise many types on damaged bytes
        advice = "replace it or delete it"
        if archive.parent.name == DOWNLOADS:
            archive.unlink()
            advice = "run again to download it again, or place the right one by hand"
        damage = f"damaged, or not what its name says: {type(error).__name__} {error}"
        what = error if isinstance(error, BadInput) else damage
        raise BadInput(f"{archive}: {what}; {advice}") from error


def _chip_names(folder: Path) -> set[str]:
    return {name.removesuffix(".jpg") for name in os.listdir(folder) if name.endswith(".jpg")}


def _check_chips(folder: Path, names: list[str]) -> None:
    present = _chip_names(folder)
    if missing := [f"{name}.jpg" for name in names if name not in present]:
        count = f"{len(missing)} of the CSV's {len(names)} chips are missing"
        raise BadInput(f"{count} ({first_few(missing)})")
