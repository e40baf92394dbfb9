"""A run folder in a bucket, and its local copy, which all other code reads and writes.

The bucket has the files of the run folder under the same names. A checkpoint's digests.json is
written last: without it the checkpoint does not exist. A step that is saved twice is written to
`checkpoints/KIND/STEP.2` the second time, so that no checkpoint is ever overwritten.
`.bucket.json` of the local copy lists the objects that this copy wrote or read, with their SHA-256.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from planet_jax.conflicts import is_url
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import (
    DIGESTS,
    find_damage,
    lock_folder,
    replace,
    sha256,
    write_json,
)
from planet_jax.runtime.progress import notify, progress
from planet_jax.storage.bucket import Bucket, StoreError, is_same, local_path
from planet_jax.train.checkpoint import list_steps

KINDS = ("best", "ema", "latest")  # in the order of uploads: a `latest` needs those before it
COMMITTED = re.compile(rf"checkpoints/({'|'.join(KINDS)})/(\d+)(?:\.(\d+))?/digests\.json")
THREADS = 8  # requests at the same time
Objects = dict[str, str]  # SHA-256 by name


@dataclasses.dataclass
class Record:
    """What the local copy `run` knows about its bucket.

    Attributes:
      owner: a random name of this copy, for the lease.
      objects: what this copy wrote or read; "" of a checkpoint that it did not read.
      damaged: folders of damaged checkpoints.
      strays: parts of checkpoints to delete: damaged, not finished, or newer than `latest`.
    """

    run: Path
    owner: str
    objects: Objects
    damaged: list[str] = dataclasses.field(default_factory=list)
    strays: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, run: Path) -> "Record":
        """Read the record of a local copy, or start one."""
        try:
            content = json.loads((run / ".bucket.json").read_text())
            return cls(run, str(content["owner"]), dict(content["objects"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(run, uuid.uuid4().hex, {})

    def write(self) -> None:
        """Write the record."""
        write_json(self.run / ".bucket.json", {"owner": self.owner, "objects": dict(self.objects)})


def committed(names: Iterable[str], kind: str) -> list[tuple[int, int, str]]:
    """Return (step, time it was saved, folder) of the checkpoints in a bucket, ascending."""
    matches = [match for name in names if (match := COMMITTED.fullmatch(name))]
    return sorted(
        (int(m[2]), int(m[3] or 1), m[0].removesuffix(f"/{DIGESTS}"))
        for m in matches
        if m[1] == kind
    )


def is_small(name: str) -> bool:
    """Return whether a file of a run is a table, picture or page: no checkpoint, not hidden."""
    parts = name.split("/")
    return parts[0] != "checkpoints" and not any(part.startswith(".") for part in parts)


def small_files(run: Path) -> dict[str, Path]:
    """Return the small files of a run folder by name."""
    tops = [path for path in sorted(run.iterdir()) if is_small(path.name)]
    files = [file for top in tops for file in (sorted(top.rglob("*")) if top.is_dir() else [top])]
    named = {file.relative_to(run).as_posix(): file for file in files if file.is_file()}
    return {name: file for name, file in named.items() if is_small(name)}


def upload_small(bucket: Bucket, record: Record, folder: Path) -> None:
    """Upload the small files that changed, and delete those that the run has no longer."""
    files = small_files(folder)
    for name, path in files.items():
        digest = sha256(path)
        if record.objects.get(name) != digest:
            bucket.upload(path, name)
            record.objects[name] = digest
    gone = [name for name in record.objects if is_small(name) and name not in files]
    bucket.remove(gone)
    for name in gone:
        del record.objects[name]


def fetch(url: str, kinds: Sequence[str] = KINDS, newest_only: bool = False) -> None:
    """Bring the local copy of a run up to date with its bucket; do nothing for a local path.

    A copy that a process of this machine trains in is left as it is.

    Raises:
      BadInput: the bucket was emptied, but not the local copy; with `newest_only`, the newest
        checkpoint is damaged.
      StoreError: the store does not answer, or refuses.
    """
    if not is_url(url):
        return
    with contextlib.suppress(BlockingIOError), lock_folder(local_path(url), wait=False):
        record = fetch_locked(Bucket(url), local_path(url), kinds)
        if newest_only and record.damaged:
            raise BadInput(
                f"{url}/{record.damaged[0]}: this checkpoint is damaged; remove it from the bucket "
                "to start from the older one"
            )


def publish(url: str) -> None:
    """Upload what a command wrote to the local copy of a run; do nothing for a local path.

    A copy that a process of this machine trains in is left to that process.

    Raises:
      BadInput: the store does not answer, or refuses; the message names the local copy.
    """
    if not is_url(url):
        return
    run = local_path(url)
    with contextlib.suppress(BlockingIOError), lock_folder(run, wait=False):
        record = Record.read(run)
        try:
            upload_small(Bucket(url), record, run)
        except StoreError as error:
            raise BadInput(f"{error}; the results are in {run}") from None
        finally:
            record.write()


def fetch_locked(bucket: Bucket, run: Path, kinds: Sequence[str] = KINDS) -> Record:
    """Do the work of `fetch` in a folder that this process has locked; return the record."""
    names, record = bucket.list(), Record.read(run)
    newest = committed(names, "latest")
    if not newest and committed(record.objects, "latest"):
        raise BadInput(
            f"{bucket.url} has no checkpoint, but its local copy {run} was uploaded; remove the "
            "copy to start again, or copy its files to the bucket to continue"
        )
    mark = f"{newest[-1][2]}/{DIGESTS}" if newest else ""
    seen = {mark: hashlib.sha256(bucket.read(mark)).hexdigest()} if mark else {}
    if not seen.items() <= record.objects.items():
        _empty(run, bucket.url)  # another machine has trained, or nothing is here yet
        record.objects.clear()
    record.objects = {name: sha for name, sha in record.objects.items() if name in names}
    wanted = [name for name in names if is_small(name) and _is_newer(names[name], record, name)]
    _download(bucket, {name: run / name for name in wanted})
    record.objects |= {name: sha256(run / name) for name in wanted} | seen
    last = newest[-1][0] if newest else 0
    for kind in kinds:
        _fetch_checkpoint(bucket, record, names, kind, last)
    whole = tuple(
        f"{folder}/" for kind in KINDS for step, _, folder in committed(names, kind)
        if step <= last and folder not in record.damaged
    )  # fmt: skip
    for name in names:
        if name.startswith("checkpoints/") and name not in record.objects:
            if name.startswith(whole):
                record.objects[name] = ""  # an older checkpoint, which was not read
            else:
                record.strays.append(name)
    record.write()
    return record


def _is_newer(info: dict[str, Any], record: Record, name: str) -> bool:
    """Return whether the bucket has another version of a file than this copy, which is unchanged.

    A file that this copy knew and has no longer was removed on purpose.
    """
    path, known = record.run / name, record.objects.get(name)
    if not path.exists():
        return known is None
    return not is_same(path, info) and sha256(path) == known


def _empty(run: Path, url: str) -> None:
    if steps := list_steps(run / "checkpoints" / "latest"):
        notify(f"{url} was trained by another machine: {run}, at step {steps[-1]}, is replaced")
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _fetch_checkpoint(
    bucket: Bucket, record: Record, names: Collection[str], kind: str, last: int
) -> None:
    """Download the newest whole checkpoint of a kind up to step `last`, unless one is here."""
    folder = record.run / "checkpoints" / kind
    candidates = [c for c in committed(names, kind) if c[0] <= last]
    for step, _, name in reversed(candidates):
        if any(not find_damage(folder / str(s)) for s in list_steps(folder) if s >= step):
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
            new = Path(temporary) / str(step)
            files = [*_digests(bucket, name), DIGESTS]
            _download(bucket, {f"{name}/{f}": new / f for f in files if f"{name}/{f}" in names})
            if damage := find_damage(new):
                notify(f"{bucket.url}/{name}: this checkpoint is damaged: {damage}")
                record.objects.pop(f"{name}/{DIGESTS}", None)
                record.damaged.append(name)
                continue
            replace(new, folder / str(step))
        record.objects |= checkpoint_objects(folder / str(step), name)
        return
    if candidates and kind == "latest":
        raise BadInput(
            f"{bucket.url}: every latest checkpoint is damaged; remove this folder to restart"
        )


def _digests(bucket: Bucket, name: str) -> dict[str, str]:
    """Return the digests of a checkpoint in a bucket; none if digests.json is damaged."""
    try:
        content = json.loads(bucket.read(f"{name}/{DIGESTS}"))
    except (ValueError, RecursionError):
        content = {}
    names = content if isinstance(content, dict) else {}
    return {file: digest for file, digest in names.items() if not {"", ".."} & set(file.split("/"))}


def checkpoint_objects(local: Path, name: str) -> Objects:
    """Return the objects of a sealed checkpoint, which has the name `name` in the bucket."""
    digests = json.loads((local / DIGESTS).read_text()) | {DIGESTS: sha256(local / DIGESTS)}
    return {f"{name}/{file}": digest for file, digest in digests.items()}


def _download(bucket: Bucket, files: dict[str, Path]) -> None:
    """Download objects side by side."""
    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress(f"fetching {bucket.url}", len(files), "files") as advance,
    ):
        for _ in pool.map(lambda item: bucket.download(*item), files.items()):
            advance()
