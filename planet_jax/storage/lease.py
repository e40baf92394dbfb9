"""A lease on a run in a bucket: at most one machine trains it at a time.

The lease is the newest object of `.lease/`, numbered from 1. A machine takes it by creating the
next number, which the store lets one machine do (`Bucket.create`), and renews it by writing it
again.
Its age is measured by the store's clock alone.
"""

import contextlib
import json
import os
import platform
import threading
import uuid

from planet_jax.runtime.errors import BadInput
from planet_jax.storage.bucket import Bucket, StoreError

FOLDER = ".lease"
RENEWED = 30.0  # seconds between two renewals, one request each
EXPIRES = 120.0  # seconds after the last renewal; a machine that is lost holds it no longer


class Lease:
    """The lease of one process. `owner` names the local copy, which one process at a time uses."""

    def __init__(self, bucket: Bucket, owner: str) -> None:
        self._bucket, self._owner = bucket, owner
        self._stop = threading.Event()
        about = {"owner": owner, "host": platform.node(), "process": os.getpid()}
        self._content = json.dumps(about).encode()

    def take(self) -> None:
        """Take the lease, and renew it in a thread until `release`.

        Raises:
          BadInput: another machine holds it; the message names the machine.
          StoreError: the store does not answer, or refuses.
        """
        older = [name for name in self._bucket.list() if _number(name)]
        newest = max(older, key=_number, default="")
        if newest:
            self._require_free(newest)
        self._name = f"{FOLDER}/{_number(newest) + 1}"
        if not self._bucket.create(self._name, self._content):
            raise self._refusal(self._name, "just now")
        self._bucket.remove(older)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _require_free(self, name: str) -> None:
        if self._about(name).get("owner") == self._owner:
            return  # of an earlier process, which has ended, because the local copy is locked
        probe = f"{FOLDER}/now-{uuid.uuid4().hex}"
        self._bucket.write(probe, b"")
        age = self._bucket.modified(probe) - self._bucket.modified(name)
        self._bucket.remove([probe])
        if (left := EXPIRES - age.total_seconds()) > 0:
            raise self._refusal(name, f"its lease ends in {left:.0f} s if that process is lost")

    def _about(self, name: str) -> dict[str, object]:
        with contextlib.suppress(ValueError):
            about = json.loads(self._bucket.read(name))
            if isinstance(about, dict):
                return about
        return {}

    def _refusal(self, name: str, detail: str) -> BadInput:
        about = self._about(name)
        return BadInput(
            f"{self._bucket.url}: process {about.get('process')} of {about.get('host')} trains "
            f"there ({detail}); stop that one, or set config.workdir to another folder"
        )

    def is_lost(self) -> bool:
        """Return whether another machine took the lease, after it could not be renewed."""
        return self._bucket.exists(f"{FOLDER}/{_number(self._name) + 1}")

    def _renew(self) -> None:
        while not self._stop.wait(RENEWED):
            with contextlib.suppress(StoreError):  # the uploads report what is wrong
                self._bucket.write(self._name, self._content)

    def release(self) -> None:
        """Give the lease back, so that another machine can continue at once."""
        self._stop.set()
        self._thread.join(5)  # seconds; a renewal that comes later would bring the object back
        with contextlib.suppress(StoreError):
            self._bucket.remove([self._name])


def _number(name: str) -> int:
    """Return the number of a lease, or 0 if the object is not one."""
    folder, _, number = name.rpartition("/")
    return int(number) if folder == FOLDER and number.isdecimal() else 0
