"""Read and write objects of a bucket, or of any other store that fsspec knows, by URL."""

import base64
import contextlib
import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from planet_jax.conflicts import is_url
from planet_jax.runtime.errors import BadInput

# The clients log each attempt with a traceback, and raise what they log.
for client in ("gcsfs", "s3fs", "aiobotocore", "fsspec"):
    logging.getLogger(client).setLevel(logging.CRITICAL)
FILES = {"file", "local"}
BLOCK = 2**23  # bytes of one request for a part of a file
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # extras of pyproject.toml


class StoreError(BadInput):
    """A store did not answer, or refused a request; the message names the URL."""


def local_path(path: str) -> Path:
    """Return the path itself, or for a URL its local copy, a folder of ~/.cache/planet_jax.

    The copy's name is the last part of the URL. No copy is inside another one.
    """
    if not is_url(path):
        return Path(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    protocol, _, rest = path.rstrip("/").partition("://")
    servers = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST")]
    digest = hashlib.sha256("\n".join([protocol.lower(), rest, *servers]).encode()).hexdigest()
    parent, _, name = rest.rpartition("/")
    folder = f"{parent.replace('/', '_')[-80:]}-{digest[:8]}"
    return cache / "planet_jax" / protocol.lower() / folder / name


def is_same(path: Path, info: dict[str, Any]) -> bool:
    """Return whether a file has the size of an object, and its MD5 where the store lists one."""
    if not path.is_file() or path.stat().st_size != info["size"]:
        return False
    expected = ""
    if "md5Hash" in info:  # GCS, except for composite objects
        expected = base64.b64decode(info["md5Hash"]).hex()
    elif re.fullmatch(r'"?[0-9a-f]{32}"?', etag := str(info.get("ETag", ""))):
        expected = etag.strip('"')  # S3, of an object of one part that KMS does not encrypt
    if not expected:
        return True
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == expected


class Bucket:
    """The objects below one URL, by their names relative to it. May be used by several threads.

    Each method raises StoreError if the store does not answer or refuses; the constructor raises
    BadInput if the store is not known or its client is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        protocol = self.url.partition("://")[0].lower()
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            extra = EXTRAS.get(protocol)
            advice = f"pip install 'planet_jax[{extra}]'" if extra else str(error)
            raise BadInput(f"{url} needs another package: {advice}") from None
        except ValueError:
            raise BadInput(f"{url}: {protocol}:// is not known; gs:// and s3:// are") from None
        with self._report("opened"):
            self._files, self._root = fsspec.core.url_to_fs(
                self.url,
                use_listings_cache=False,
                **({"auto_mkdir": True} if protocol in FILES else {}),
            )
        # gcsfs does not compare by itself what arrived with what was sent.
        self._checks = {"consistency": "md5"} if protocol in ("gs", "gcs") else {}

    def list(self, folder: str = "") -> dict[str, dict[str, Any]]:
        """Return `{name: {"size": bytes, ...}}` of all objects of a folder; it may be missing."""
        with self._report("read"):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
        return {
            name[len(self._root) :].strip("/"): info
            for name, info in found.items()
            if info["type"] == "file" and not name.endswith("/")
        }

    def info(self, name: str) -> dict[str, Any]:
        """Return what the store knows about an object: "size" in bytes, perhaps its MD5."""
        with self._report("read", name):
            self._files.invalidate_cache()
            info = dict(self._files.info(self._path(name)))
            if not isinstance(info.get("size"), int):
                raise ValueError("the server does not say how large it is")
            return info

    def read(self, name: str) -> bytes:
        """Return the content of a small object."""
        with self._report("read", name):
            return bytes(self._files.cat_file(self._path(name)))

    def download(self, name: str, path: Path) -> None:
        """Write an object to a new file, under a temporary name until it is whole."""
        # Not atomic_path: it flushes each file, which takes minutes for 40,000 chips.
        part = path.with_name(f".part-{path.name}")
        with self._report("read", name):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(self._path(name), str(part))
            os.replace(part, path)

    def download_rest(self, name: str, part: Path, size: int) -> Iterator[int]:
        """Append what a partial file does not have yet; yield the bytes of each block."""
        with self._report("read", name), part.open("ab") as file:
            while (begin := file.tell()) < size:
                content = self._files.cat_file(
                    self._path(name), start=begin, end=min(begin + BLOCK, size)
                )
                if not content:
                    raise OSError(f"ends after {begin} of {size} bytes")
                file.write(content)
                file.flush()
                yield len(content)

    def upload(self, path: Path, name: str) -> None:
        """Write a file to an object. In a bucket it appears whole, or not at all."""
        with self._report("written", name):
            if not FILES & set(self._files.protocol):
                self._files.put_file(str(path), self._path(name), **self._checks)
                return
            temporary = f"{self._path(name)}.part"
            self._files.put_file(str(path), temporary)
            os.replace(temporary, self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a small object."""
        with self._report("written", name):
            self._files.pipe_file(self._path(name), content, **self._checks)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object that must be new; return False if it exists already.

        The store decides: `If-None-Match` on S3, generation 0 on GCS, O_EXCL for files.
        """
        with self._report("written", name):
            try:
                self._files.pipe_file(self._path(name), content, mode="create", **self._checks)
            except FileExistsError:
                return False
        return True

    def modified(self, name: str) -> datetime:
        """Return when an object was last written, by the store's clock."""
        with self._report("read", name):
            self._files.invalidate_cache()
            return self._files.modified(self._path(name))

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        paths = [self._path(name) for name in names]
        single = [path for path in paths if glob.has_magic(path)]  # `rm` would expand it
        with self._report("written"):
            try:
                if many := [path for path in paths if path not in single]:
                    self._files.rm(many)
            except FileNotFoundError:  # some stores stop at it
                single = paths
            for path in single:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(path)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _report(self, done: str, name: str = "") -> Iterator[None]:
        """Raise the client's error, which can have any type, as one line."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            where = f"{self.url}/{name}" if name else self.url
            text = " ".join(str(error).split())[:200]
            raise StoreError(
                f"{where}: cannot be {done} ({type(error).__name__}: {text})"
            ) from error
