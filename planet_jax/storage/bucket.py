"""Read and write objects of a bucket, or of any other store that fsspec knows, by URL."""

import contextlib
import logging
import os
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
# gcsfs does not check by itself what arrived.
OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True}, "local": {"auto_mkdir": True},
    "gs": {"consistency": "md5"}, "gcs": {"consistency": "md5"},
}  # fmt: skip
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # extras of pyproject.toml


class StoreError(BadInput):
    """A store did not answer, or refused a request; the message names the URL."""


def local_path(path: str) -> Path:
    """Return the path itself, or for a URL its local copy: ~/.cache/planet_jax/gs/BUCKET/NAME."""
    if not is_url(path):
        return Path(path)
    protocol, _, rest = path.partition("://")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "planet_jax" / protocol.lower() / rest.strip("/")


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
                self.url, use_listings_cache=False, **OPTIONS.get(protocol, {})
            )

    def list(self) -> dict[str, dict[str, Any]]:
        """Return `{name: {"size": bytes, ...}}` of all objects; the folder may be missing."""
        with self._report("read"):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._root, detail=True)
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
            return dict(self._files.info(self._path(name)))

    def read(self, name: str) -> bytes:
        """Return the content of a small object."""
        with self._report("read", name):
            return bytes(self._files.cat_file(self._path(name)))

    def download(self, name: str, path: Path) -> None:
        """Write an object to a new file, under a temporary name until it is whole."""
        part = path.with_name(f".part-{path.name}")
        with self._report("read", name):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(self._path(name), str(part))
            os.replace(part, path)

    def download_rest(self, name: str, part: Path, size: int) -> Iterator[int]:
        """Append what a partial file does not have yet; yield the bytes of each block."""
        block = 2**23
        with self._report("read", name), part.open("ab") as file:
            while (begin := file.tell()) < size:
                content = self._files.cat_file(
                    self._path(name), start=begin, end=min(begin + block, size)
                )
                if not content:
                    raise OSError(f"ends after {begin} of {size} bytes")
                file.write(content)
                file.flush()
                yield len(content)

    def upload(self, path: Path, name: str) -> None:
        """Write a file to an object. In a bucket it appears whole, or not at all."""
        with self._report("written", name):
            if "file" not in self._files.protocol:
                self._files.put_file(str(path), self._path(name))
                return
            temporary = f"{self._path(name)}.part"
            self._files.put_file(str(path), temporary)
            os.replace(temporary, self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a small object."""
        with self._report("written", name):
            self._files.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object that must be new; return False if it exists already.

        The store decides: `If-None-Match` on S3, generation 0 on GCS, O_EXCL for files.
        """
        with self._report("written", name):
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if "412" in str(error) or "PreconditionFailed" in str(error):
                    return False
                raise
        return True

    def exists(self, name: str) -> bool:
        """Return whether an object exists."""
        with self._report("read", name):
            return bool(self._files.exists(self._path(name)))

    def modified(self, name: str) -> datetime:
        """Return when an object was last written, by the store's clock."""
        with self._report("read", name):
            self._files.invalidate_cache()
            return self._files.modified(self._path(name))

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        paths = [self._path(name) for name in names]
        with self._report("written"), contextlib.suppress(FileNotFoundError):
            if paths:
                self._files.rm(paths)

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
