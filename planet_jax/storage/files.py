"""Fetch a folder of files, or an archive of one, from a store to its local copy."""

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from planet_jax.conflicts import is_url
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import atomic_path, lock_folder, write_json
from planet_jax.runtime.progress import progress
from planet_jax.storage.bucket import Bucket, is_same, local_path

WHOLE = ".fetched.json"  # in the local copy: sizes of all files, written last
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
THREADS = 16  # requests at the same time


def fetch_files(url: str, again: bool = False) -> None:
    """Fetch a folder, file or archive to its local copy; do nothing for a local path.

    What an earlier call fetched is kept, and a broken transfer is continued. A whole copy is used
    without asking the store, unless `again`: then new and changed files are fetched, and removed
    ones deleted. Processes of one machine fetch one after the other, so the first serves all.

    Raises:
      BadInput: nothing is there, or an archive cannot be unpacked.
      StoreError: the store does not answer, or refuses.
      OSError: the disk is full.
    """
    if not is_url(url):
        return
    local = local_path(url)
    with lock_folder(local):
        if again or not (local / WHOLE).exists():
            if url.lower().endswith(ARCHIVES):
                _fetch_archive(url, local)
            else:
                _fetch_folder(Bucket(url), local)


def _fetch_folder(bucket: Bucket, local: Path) -> None:
    (local / WHOLE).unlink(missing_ok=True)
    objects = {n: info for n, info in bucket.list().items() if not _is_hidden(n)}
    if not objects:
        raise BadInput(f"{bucket.url}: no files there; check the name")
    wanted = {name: local / (name or bucket.url.rpartition("/")[2]) for name in objects}
    kept = {path for name, path in wanted.items() if is_same(path, objects[name])}
    for path in local.rglob("*"):
        if path.is_file() and path not in kept and path.name != ".lock":
            path.unlink()
    missing = [name for name, path in wanted.items() if path not in kept]

    def download(name: str) -> None:
        bucket.download(name, wanted[name])
        if wanted[name].stat().st_size != objects[name]["size"]:  # the client checks the content
            wanted[name].unlink()
            raise BadInput(f"{bucket.url}/{name}: arrived damaged; repeat the command")

    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress(f"fetching {bucket.url}", len(objects), "files", done=len(kept)) as advance,
    ):
        for _ in pool.map(download, missing):
            advance()
    write_json(local / WHOLE, {name: info["size"] for name, info in objects.items()})


def _fetch_archive(url: str, local: Path) -> None:
    """Download an archive, continuing a part of it, and unpack it into `local`."""
    parent, _, name = url.rpartition("/")
    bucket = Bucket(parent)
    info = bucket.info(name)
    version = [info["size"], info.get("ETag"), info.get("generation"), str(info.get("mtime"))]
    part = local / f".{hashlib.sha256(repr(version).encode()).hexdigest()[:16]}.part"
    done = part.stat().st_size if part.exists() else 0
    with progress(f"fetching {url}", info["size"] // 10**6, "MB", done // 10**6) as advance:
        for size in bucket.download_rest(name, part, info["size"]):
            done, before = done + size, done
            advance(done // 10**6 - before // 10**6)
    for path in local.iterdir():
        if path.name != ".lock" and path != part:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    archive = part.rename(local / f".{name}")
    try:
        with atomic_path(local / "unpacked") as temporary:
            temporary.mkdir()
            # Neither writes to a path outside of the folder.
            if name.lower().endswith(".zip"):
                shutil.unpack_archive(archive, temporary)
            else:
                shutil.unpack_archive(archive, temporary, filter="data")
            if not any(path.is_file() for path in temporary.rglob("*")):
                raise ValueError("it holds no files")
    except Exception as error:  # damaged bytes raise many types
        if isinstance(error, OSError) and error.errno:  # of the disk
            archive.rename(part)
            raise
        archive.unlink()
        raise BadInput(f"{url}: cannot be unpacked ({error})") from None
    archive.unlink()
    for path in _single_folder(local / "unpacked").iterdir():
        path.rename(local / path.name)
    shutil.rmtree(local / "unpacked")
    write_json(local / WHOLE, {name: info["size"]})


def _single_folder(folder: Path) -> Path:
    """Return the folder in which all of `folder` lies, as in an archive of one folder."""
    inner = [path for path in folder.iterdir() if not _is_hidden(path.name)]
    is_only = len(inner) == 1 and inner[0].is_dir() and any(inner[0].glob("*.csv"))
    return inner[0] if is_only else folder


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
