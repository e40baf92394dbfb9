"""Copy a run folder to its bucket in a thread, while training continues."""

import contextlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from planet_jax.runtime.errors import RunFailed
from planet_jax.runtime.files import DIGESTS, sha256
from planet_jax.runtime.progress import notify
from planet_jax.storage.bucket import Bucket, StoreError
from planet_jax.storage.lease import Lease
from planet_jax.train.bucket_run import (
    KINDS,
    THREADS,
    Record,
    checkpoint_objects,
    committed,
    small_files,
    upload_small,
)
from planet_jax.train.checkpoint import list_steps
from planet_jax.train.checkpoint_writer import KEEP

FOLDER = ".upload"  # in the run folder: links to what is uploaded, which the run may delete
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts, doubled each time


class LeaseLost(Exception):
    """Another machine trains in the bucket."""


class Mirror:
    """Upload a run's newest checkpoints and its small files, each time that `add` is called.

    If uploads take longer than the time between saves, only the newest save is uploaded next. An
    error of the store is reported once and the upload repeated; training is not disturbed.
    """

    def __init__(self, bucket: Bucket, record: Record, lease: Lease, grace_seconds: float) -> None:
        self._bucket, self._record, self._lease = bucket, record, lease
        self._grace_seconds, self._grace_ends = grace_seconds, 0.0
        self.url, self.run = bucket.url, record.run
        self._changed = threading.Condition()
        self._next: Path | None = None  # the folder of links to upload next
        self._busy = self._hurry = False
        self._failure = ""
        self._lost = self._is_closed = self._keeps_all = False
        shutil.rmtree(self.run / FOLDER, ignore_errors=True)
        threading.Thread(target=self._work, name="uploads", daemon=True).start()

    def add(self) -> None:
        """Upload the run folder as it is now. Links the checkpoints, so it takes milliseconds."""
        folder = self.run / FOLDER / str(time.monotonic_ns())
        for kind in KINDS:
            if steps := list_steps(self.run / "checkpoints" / kind):
                part = Path("checkpoints", kind, str(steps[-1]))
                shutil.copytree(self.run / part, folder / part, copy_function=_link)
        for name, path in small_files(self.run).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a command removed it meanwhile
                shutil.copy2(path, folder / name)
        with self._changed:
            older, self._next = self._next, folder
            self._changed.notify_all()
        if older:
            shutil.rmtree(older)

    def drain(self, seconds: float, stop: threading.Event | None = None) -> bool:
        """Wait until all is uploaded, for some seconds or until `stop`; return whether it is."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            deadline = time.monotonic() + seconds
            while self._is_behind() and (left := deadline - time.monotonic()) > 0:
                if stop and stop.is_set():
                    break
                self._changed.wait(min(left, 0.5))  # a signal does not end the wait
            return not self._is_behind()

    def start_grace(self) -> None:
        """Count `grace_seconds` from now; only the first call counts."""
        self._grace_ends = self._grace_ends or time.monotonic() + self._grace_seconds

    def drain_in_grace(self) -> None:
        """Wait until all is uploaded or the grace ends; print the step that is in the bucket."""
        is_worth_a_line = self._grace_ends > 0 or self._is_behind()
        self.start_grace()
        self.drain(self._grace_ends - time.monotonic())
        if is_worth_a_line:
            notify(f"{self.url}: step {self.last_step} is in the bucket{self.reason}")

    def close(self) -> None:
        """End the thread after its current request."""
        with self._changed:
            self._is_closed, self._next = True, None
            self._changed.notify_all()

    def _is_behind(self) -> bool:
        return not self._lost and (self._busy or self._next is not None)

    def raise_failure(self) -> None:
        """Raise RunFailed if another machine trains in the bucket; other failures are repeated."""
        if self._lost:
            raise RunFailed(
                f"{self.url}: another machine trains there, because this one could not "
                f"renew its lease; its local copy is {self.run}"
            )

    @property
    def last_step(self) -> int:
        """The newest step that the bucket has."""
        names = list(self._record.objects)  # a copy: the thread adds to it
        return max((step for step, _, _ in committed(names, "latest")), default=0)

    @property
    def reason(self) -> str:
        """Why the last attempt failed, in parentheses; '' if it did not."""
        return f" ({self._failure})" if self._failure else ""

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_closed)
                if self._next is None:
                    return
                folder, self._next, self._busy = self._next, None, True
            assert folder is not None
            self._upload_until_done(folder)
            shutil.rmtree(folder, ignore_errors=True)
            with self._changed:
                self._busy = False
                self._changed.notify_all()
            if self._lost:
                return

    def _upload_until_done(self, folder: Path) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                self._upload(folder)
                if self._failure:
                    notify(f"{self.url}: reached again; step {self.last_step} is there")
                self._failure = ""
                return
            except LeaseLost:
                self._lost = True
                return
            except Exception as error:  # a StoreError, or a full local disk
                if not self._failure:
                    notify(f"{error}; training continues, and the upload is repeated")
                self._failure = str(error)
            with self._changed:
                self._changed.wait_for(lambda: self._hurry, wait)
                wait = FIRST_WAIT if self._hurry else min(2 * wait, LONGEST_WAIT)
                self._hurry = False
                if self._next is not None or self._is_closed:  # a newer save replaces this one
                    return

    def _upload(self, folder: Path) -> None:
        """Upload the small files, then `best`, then `latest`, each digests.json last; clean up."""
        self._require_lease()
        upload_small(self._bucket, self._record, folder)
        for kind in KINDS:
            for step in list_steps(folder / "checkpoints" / kind):
                self._upload_checkpoint(folder / "checkpoints" / kind / str(step), kind, step)
        self._remove_older()
        self._record.write()

    def _upload_checkpoint(self, local: Path, kind: str, step: int) -> None:
        objects, mark = self._record.objects, sha256(local / DIGESTS)
        same = [(n, name) for s, n, name in committed(objects, kind) if s == step]
        if any(objects[f"{name}/{DIGESTS}"] == mark for _, name in same):
            return
        number = same[-1][0] + 1 if same else 1
        name = f"checkpoints/{kind}/{step}" + (f".{number}" if number > 1 else "")
        new = checkpoint_objects(local, name)
        last = f"{name}/{DIGESTS}"
        missing = [n for n, digest in new.items() if n != last and objects.get(n) != digest]

        def upload(n: str) -> None:
            self._bucket.upload(local / n.removeprefix(f"{name}/"), n)
            objects[n] = new[n]

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(upload, missing))
        self._require_lease()
        objects[last] = new[last]
        self._record.write()  # before the upload: a kill between both must not lose the local copy
        try:
            upload(last)
        except StoreError:
            del objects[last]
            raise

    def _require_lease(self) -> None:
        if self._is_closed or self._lease.is_lost():  # closed: the lease is given back
            raise LeaseLost

    def _remove_older(self) -> None:
        """Delete all but the newest checkpoints of each kind, and parts of those never finished."""
        newest = [
            f"{folder}/" for kind in KINDS
            for _, _, folder in committed(self._record.objects, kind)[-KEEP:]
        ]  # fmt: skip
        old = [
            name for name in self._record.objects
            if name.startswith("checkpoints/") and not name.startswith(tuple(newest))
        ]  # fmt: skip
        old += [name for name in self._record.strays if name not in self._record.objects]
        # The marks go first: what is left of a checkpoint without its mark does not count.
        try:
            self._bucket.remove(name for name in old if name.endswith(f"/{DIGESTS}"))
            self._bucket.remove(name for name in old if not name.endswith(f"/{DIGESTS}"))
        except StoreError as error:
            if not self._keeps_all:
                notify(f"{error}; older checkpoints stay in the bucket")
            self._keeps_all = True
            return
        for name in old:
            self._record.objects.pop(name, None)
        self._record.strays.clear()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
