"""A lease on a run in a bucket: at most one machine trains it at a time.

The lease is the newest object of `.lease/`, numbered from 1. A machine takes it by creating the
next number, which the store lets one machine do (`Bucket.create`), and renews it by writing it
again. Its age is measured by the store's clock alone.
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
        older = self._leases()
        if older:
            self._require_free(older[-1])
        self._name = f"{FOLDER}/{_number(older[-1]) + 1 if older else 1}"
        # The client repeats a request whose answer was lost: the object may be our own.
        is_new = self._bucket.create(self._name, self._content)
        if not is_new and self._about(self._name).get("owner") != self._owner:
            raise self._refusal(self._name, "just now")
        with contextlib.suppress(StoreError):  # perhaps it may not be deleted
            self._bucket.remove(older)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _leases(self) -> list[str]:
        return sorted(filter(_number, self._bucket.list(FOLDER)), key=_number)

    def _require_free(self, name: str) -> None:
        about = self._about(name)
        # An earlier process of this local copy has ended, because the copy is locked.
        if about.get("released") or about.get("owner") == self._owner:
            return
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
        return any(_number(name) > _number(self._name) for name in self._leases())

    def _renew(self) -> None:
        while not self._stop.wait(RENEWED):
            with contextlib.suppress(StoreError):  # the uploads report what is wrong
                self._bucket.write(self._name, self._content)

    def release(self) -> None:
        """Give the lease back, so that another machine can continue at once.

        The object stays, so that no number is used twice.
        """
        self._stop.set()
        self._thread.join(5)  # seconds; a renewal that comes later would take it again
        with contextlib.suppress(StoreError):
            self._bucket.write(self._name, json.dumps({"released": True}).encode())


def _number(name: str) -> int:
    """Return the number of a lease, or 0 if the object is not one."""
    folder, _, number = name.rpartition("/")
    return int(number) if folder == FOLDER and number.isdecimal() else 0
