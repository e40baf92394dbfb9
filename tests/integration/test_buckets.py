"""Runs in a bucket, against an S3 server and a GCS emulator on the loopback."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from planet_jax import commands
from planet_jax.runtime.errors import BadInput, RunFailed
from planet_jax.storage import lease
from planet_jax.storage.bucket import Bucket, StoreError, local_path
from planet_jax.train import bucket_run, mirror, run_folder
from planet_jax.train.checkpoint import require_checkpoint
from tests.support import (
    assert_refusal,
    assert_same_run,
    finish,
    signal_after,
    small_config,
    start_program,
)

# aiohttp's advice to gcsfs
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
both = pytest.mark.parametrize(
    "store", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def each_save(monkeypatch):
    """Wait for the upload of each save, so that the bucket has all of a run's checkpoints."""
    add = mirror.Mirror.add

    def add_and_wait(self):
        add(self)
        assert self.drain(30)

    monkeypatch.setattr(mirror.Mirror, "add", add_and_wait)


@pytest.fixture
def untouched(tmp_path, machine):
    """Train the run of these tests in a local folder, and return its config."""
    config = small_config(tmp_path, **{"train.save_every": 2, "optim.ema_decay": 0.5})
    commands.train(config)
    return config


def remote(config, url, **options):
    """Return a copy of a config with another run folder."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({"workdir": url, **options})
    return config


@both
def test_a_run_in_a_bucket_is_the_local_one_on_any_machine(
    store, machine, untouched, each_save, capsys
):
    """Training, scores, a later stage and a report; a plain copy of a local run resumes too."""
    config = remote(untouched, store.url)
    commands.train(config)
    assert_same_run(local_path(store.url), Path(untouched.workdir))
    machine("second")
    assert not local_path(store.url).exists()
    commands.train(config)
    assert "this run is finished" in capsys.readouterr().out
    assert_same_run(local_path(store.url), Path(untouched.workdir))
    machine("third")
    scores = commands.evaluate(config)
    np.testing.assert_equal(scores, commands.evaluate(untouched))
    names = Bucket(store.url).list()
    assert {"metrics.json", "config.json", "history.png"} <= names.keys()
    assert len(bucket_run.committed(names, "latest")) == 2
    machine("fourth")
    second = remote(config, f"{store.url}-2", init_from=store.url)
    commands.train(second)
    commands.report(second)
    assert "report.html" in Bucket(second.workdir).list()
    copied = Bucket(f"{store.url}-copy")
    for path in Path(untouched.workdir).rglob("*"):
        if path.is_file():
            copied.upload(path, path.relative_to(untouched.workdir).as_posix())
    commands.train(remote(untouched, copied.url))
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_machine_that_is_lost_loses_the_steps_since_the_last_upload(store, machine, tmp_path):
    """The program is killed in its second upload or so, and its local folder is deleted."""
    local = small_config(tmp_path, **{"train.save_every": 2})
    finish(start_program("train", local))
    config = remote(local, store.url)
    store.writes_until_fault = 40
    process = start_program("train", config)
    while not store.fault and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    store.fault, store.writes_until_fault = "", -1
    names = Bucket(store.url).list()
    known = bucket_run.committed(names, "latest")
    machine("second")
    Bucket(store.url).remove(name for name in names if name.startswith(lease.FOLDER))  # expired
    output = finish(start_program("train", config))
    if known and known[-1][0] < 10:
        assert f"resuming after step {known[-1][0]} of 10" in output
    assert_same_run(local_path(store.url), Path(local.workdir))
    assert not fetched(store.url).strays


def fetched(url):
    """Bring the local copy of this machine up to date; return its record."""
    local_path(url).mkdir(parents=True, exist_ok=True)
    return bucket_run.fetch_locked(Bucket(url), local_path(url))


@pytest.mark.parametrize("fault", ["503", "403"])
def test_an_outage_delays_the_upload_and_not_the_run(
    store, machine, untouched, monkeypatch, capsys, fault
):
    """It begins when training does. The first run gives up, and the next uploads the rest."""
    config = remote(untouched, store.url, **{"train.upload_minutes": 0.02})
    fetch = run_folder.fetch_locked

    def fetch_then_fail(*args):
        record = fetch(*args)
        store.fault = fault
        return record

    monkeypatch.setattr(run_folder, "fetch_locked", fetch_then_fail)
    with pytest.raises(RunFailed, match=r"the bucket has step 0, .*repeat the command"):
        commands.train(config)
    assert "training continues, and the upload is repeated" in capsys.readouterr().err
    store.fault = ""
    monkeypatch.setattr(run_folder, "fetch_locked", fetch)
    config = remote(untouched, store.url)
    commands.train(config)
    assert "this run is finished" in capsys.readouterr().out
    machine("second")
    commands.train(config)
    assert_same_run(local_path(store.url), Path(untouched.workdir))


@pytest.mark.slow
def test_an_outage_that_ends_loses_nothing(store, machine, untouched, monkeypatch, capsys):
    fetch = run_folder.fetch_locked

    def fetch_then_fail(*args):
        record = fetch(*args)
        store.fault = "503"
        threading.Timer(3, setattr, (store, "fault", "")).start()
        return record

    monkeypatch.setattr(run_folder, "fetch_locked", fetch_then_fail)
    commands.train(remote(untouched, store.url))
    assert re.search(r"reached again; step \d+ is there", capsys.readouterr().err)
    machine("second")
    monkeypatch.setattr(run_folder, "fetch_locked", fetch)
    commands.train(remote(untouched, store.url))
    assert_same_run(local_path(store.url), Path(untouched.workdir))


def test_sigterm_saves_uploads_and_gives_the_lease_back(store, machine, untouched):
    config = remote(untouched, store.url, **{"train.epochs": 200, "train.save_every": 0})
    process = start_program("train", config)
    output = signal_after(process, local_path(store.url), 12, signal.SIGTERM)
    assert process.returncode == 143, output
    step = int(output.split("SIGTERM after step ")[1].split(":")[0])
    assert f"{store.url}: step {step} is in the bucket" in output
    assert Bucket(store.url).read(f"{lease.FOLDER}/1") == b'{"released": true}'
    machine("second")
    fetched(store.url)
    assert require_checkpoint(local_path(store.url), "latest").metadata.step == step


@pytest.mark.slow
def test_damage_in_the_bucket_falls_back_and_a_half_checkpoint_does_not_count(
    store, machine, untouched, each_save, capsys
):
    config = remote(untouched, store.url)
    commands.train(config)
    bucket = Bucket(store.url)
    latest = bucket_run.committed(bucket.list(), "latest")
    newest, older = latest[-1][2], latest[-2]
    bucket.remove([f"{newest}/digests.json"])
    machine("second")
    commands.train(config)
    assert f"resuming after step {older[0]} of 10" in capsys.readouterr().err
    assert_same_run(local_path(store.url), Path(untouched.workdir))
    newest = bucket_run.committed(bucket.list(), "latest")[-1][2]
    bucket.write(f"{newest}/meta/metadata", b"{}")
    machine("third")
    commands.train(config)
    assert f"{newest}: this checkpoint is damaged: meta/metadata" in capsys.readouterr().err
    assert_same_run(local_path(store.url), Path(untouched.workdir))
    machine("fourth")
    commands.train(config)
    assert "this run is finished" in capsys.readouterr().out


def test_one_machine_at_a_time(store, machine, untouched, monkeypatch):
    bucket = Bucket(store.url)
    first = lease.Lease(bucket, "copy of the first")
    first.take()
    machine("second")
    config = remote(untouched, store.url)
    with pytest.raises(BadInput, match=rf"process {os.getpid()} of .* trains there \(its lease"):
        commands.train(config)
    monkeypatch.setattr(lease, "EXPIRES", -1.0)
    second = lease.Lease(bucket, "copy of the second")
    second.take()
    assert first.is_lost()
    assert not second.is_lost()
    again = lease.Lease(bucket, "copy of the second")
    again.take()  # the same machine, after a kill
    again.release()
    lease.Lease(bucket, "copy of the third").take()
    assert first.is_lost()  # its number is not used again
    monkeypatch.setattr(lease, "EXPIRES", 120.0)
    with pytest.raises(BadInput, match="trains there"):
        lease.Lease(bucket, "copy of the fourth").take()
    monkeypatch.setattr(lease, "EXPIRES", -1.0)
    monkeypatch.setattr(mirror.Lease, "is_lost", lambda self: True)
    with pytest.raises(RunFailed, match=r"another machine trains there"):
        commands.train(config)


def test_small_files_that_change_or_go_are_the_same_everywhere(store, machine, untouched):
    """A copy takes what another machine wrote, and does not get back what it removed."""
    config = remote(untouched, store.url)
    commands.train(config)
    run, bucket = local_path(store.url), Bucket(store.url)
    bucket.write("metrics.json", b"of another machine")
    fetched(store.url)
    assert (run / "metrics.json").read_bytes() == b"of another machine"
    bucket.write("metrics.json", b"another, and newer")
    bucket_run.fetch(store.url)
    assert (run / "metrics.json").read_bytes() == b"another, and newer"
    (run / "metrics.json").unlink()
    bucket_run.fetch(store.url)
    assert not (run / "metrics.json").exists()
    bucket_run.publish(store.url)
    assert "metrics.json" not in bucket.list()


@pytest.mark.slow
def test_a_bucket_that_deletes_nothing_keeps_all(
    store, machine, untouched, each_save, monkeypatch, capsys
):
    """Training needs no right to delete."""

    def refuse(self, names):
        if list(names):
            raise StoreError(f"{self.url}: cannot be written (403)")

    monkeypatch.setattr(Bucket, "remove", refuse)
    commands.train(remote(untouched, store.url))
    assert "older checkpoints stay in the bucket" in capsys.readouterr().err
    steps = [step for step, *_ in bucket_run.committed(Bucket(store.url).list(), "latest")]
    assert steps == [2, 4, 5, 6, 8, 10]


def test_a_kill_after_the_mark_keeps_the_local_copy(store, machine, untouched, monkeypatch, capsys):
    """What was uploaded is recorded before the mark of its checkpoint is."""

    def fail(self):
        raise StoreError("the store does not answer")

    monkeypatch.setattr(mirror.Mirror, "_remove_older", fail)  # this is after all marks
    with pytest.raises(RunFailed, match="not all of the run"):
        commands.train(remote(untouched, store.url, **{"train.upload_minutes": 0.1}))
    (*_, (_, _, folder)) = bucket_run.committed(Bucket(store.url).list(), "latest")
    record = fetched(store.url)
    assert f"{folder}/digests.json" in record.objects
    assert "is replaced" not in capsys.readouterr().err
    assert require_checkpoint(record.run, "latest").metadata.step == 10


@pytest.mark.parametrize("name", ["/tmp/evil", "../../../../../evil"])
def test_names_in_digests_do_not_leave_the_folder(store, machine, tmp_path, monkeypatch, name):
    """An object may have such a name; it is not downloaded, and the checkpoint is damaged."""
    written = []
    monkeypatch.setattr(Bucket, "download", lambda self, name, path: written.append(path))
    digests = f"checkpoints/latest/5/{bucket_run.DIGESTS}"
    content = json.dumps({name: "0", "a": "0"}).encode()
    monkeypatch.setattr(Bucket, "read", lambda self, name: content)
    names = dict.fromkeys([digests, "checkpoints/latest/5/a", f"checkpoints/latest/5/{name}"])
    monkeypatch.setattr(Bucket, "list", lambda self: names)
    with pytest.raises(BadInput, match="every latest checkpoint is damaged"):
        fetched(store.url)
    assert sorted(path.name for path in written) == ["a", bucket_run.DIGESTS]


def test_a_bucket_that_was_emptied_is_not_filled_from_the_cache(store, machine, untouched):
    config = remote(untouched, store.url)
    commands.train(config)
    bucket = Bucket(store.url)
    bucket.remove(bucket.list())
    with pytest.raises(BadInput, match=r"has no checkpoint, but its local copy .* was uploaded"):
        commands.train(config)


def test_wrong_urls_end_with_one_line(store, machine, tmp_path):
    config = small_config(tmp_path)
    for url, message in (
        ("nope://bucket/run", "nope:// is not known"),
        ("az://bucket/run", "needs another package"),
        (store.url.split("/")[0] + "//", "must name a folder"),
        (store.url.replace("bucket", "no-such-bucket"), "cannot be written"),
    ):
        process = start_program("train", remote(config, url), stderr=-1)
        stdout, stderr = process.communicate(timeout=120)
        assert_refusal(process.returncode, stdout, stderr, message)
