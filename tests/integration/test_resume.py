"""Test that a run survives kills, damage, full disks, changed options and an older version."""

import errno
import json
import os
import shutil
import signal
import time

import matplotlib.figure
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest

from planet_jax import commands
from planet_jax.runtime.errors import BadInput, resource_error
from planet_jax.runtime.files import seal
from planet_jax.runtime.signals import Stopped
from planet_jax.train import log, loop
from planet_jax.train.checkpoint import require_checkpoint
from planet_jax.train.checkpoint_writer import CheckpointWriter
from tests.support import (
    ROOT,
    assert_same_run,
    finish,
    signal_after,
    small_config,
    start_program,
    tables,
)


@pytest.fixture
def copied(trained, tmp_path):
    """Copy the finished run; return the copy's folder and the options that select it."""
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    return tmp_path / "run", {"workdir": str(tmp_path / "run")}


RECIPE = {
    "optim.ema_decay": 0.9, "optim.accumulate": 2, "optim.clip_norm": 1.0, "optim.cycles": 2,
    "loss.label_smoothing": 0.1, "loss.gamma": (1.0, 2.0), "loss.margin": 0.05,
    "loss.soft_f2": 0.5, "loss.balance": 0.5, "model.exclusive": ("a", "b"), "train.patience": 3,
}  # fmt: skip


@pytest.mark.parametrize("recipe", [{}, RECIPE], ids=["notebook", "recipe"])
def test_killed_run_ends_as_the_untouched_one(tmp_path, recipe):
    """Every row, weight and moment is equal bit for bit; SIGTERM saves and ends with 143."""
    config = small_config(tmp_path, **{"train.save_every": 2}, **recipe)
    whole, run = tmp_path / "whole", tmp_path / "killed"
    untouched = start_program("train", config, f"--config.workdir={whole}")  # runs at the same time
    killed = ("train", config, f"--config.workdir={run}")
    signal_after(start_program(*killed), run, 3, signal.SIGKILL)
    process = start_program(*killed)
    output = signal_after(process, run, 6, signal.SIGTERM)
    assert process.returncode == 143, output
    assert "saved; repeat the command to continue" in output
    assert len(pd.read_csv(run / "steps.csv")) < 10
    finish(untouched)
    finish(start_program(*killed))
    assert_same_run(whole, run)
    assert require_checkpoint(run, "latest").metadata.step == 10


@pytest.mark.parametrize("content", [None, b"", b"\xff\0,x\n1,2,3,4"])
def test_finished_run_with_damaged_tables_is_still_finished(trained, copied, capsys, content):
    run, options = copied
    (run / "history.csv").unlink()
    if content is not None:
        (run / "history.csv").write_bytes(content)
    commands.train(small_config(trained[0], **options))
    output = capsys.readouterr().out
    assert "this run is finished" in output
    assert "steps.csv or history.csv is damaged or missing" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_start_at_once(tmp_path, number):
    process = start_program("train", small_config(tmp_path))
    time.sleep(1.5)  # while it imports
    process.send_signal(number)
    output, _ = process.communicate(timeout=5)
    assert process.returncode == -number  # which a shell reports as 130 and 143
    assert output == ""


@pytest.mark.parametrize("epoch", [0, 1])  # either epoch may have the best F2
def test_scoring_cut_short_by_sigterm_is_repeated(tmp_path, monkeypatch, epoch):
    """The fault harness found this bug: `best` was saved with the weights of a later step."""
    validate, epochs = loop.validate, []

    def stopped(stage, variables, stop):
        epochs.append(len(epochs))
        if epochs[-1] == epoch:
            signal.raise_signal(signal.SIGTERM)
            assert stop()
            raise Stopped
        return validate(stage, variables, stop)

    def config(name):
        return small_config(tmp_path, workdir=str(tmp_path / name), **{"train.save_every": 3})

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", stopped)
        with pytest.raises(Stopped):
            commands.train(config("cut"))
    assert not require_checkpoint(tmp_path / "cut", "latest").metadata.is_complete
    for name in ("cut", "whole"):
        commands.train(config(name))
    runs = tmp_path / "cut", tmp_path / "whole"
    best = [sorted(path.name for path in (run / "checkpoints/best").iterdir()) for run in runs]
    assert best[0] == best[1]
    assert_same_run(*runs)
    assert len(tables(runs[0])[1]) == 2


def test_damaged_checkpoint_is_named_and_the_older_one_used(trained, copied, capsys):
    run, options = copied
    for file in (run / "checkpoints/latest/10/weights").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    commands.train(small_config(trained[0], **options))
    output = capsys.readouterr().err
    assert "latest/10: this checkpoint is damaged" in output
    assert "the older one is used" in output
    assert "resuming after step 5 of 10" in output
    assert_same_run(run, trained[0] / "run")


def test_checkpoint_is_kept_until_its_successor_is_whole(trained, copied, monkeypatch):
    """If SIGTERM interrupts its scoring, a step is saved twice; here the second save fails."""
    run, _ = copied
    shutil.rmtree(run / "checkpoints/latest/5")
    metadata = require_checkpoint(run, "latest").metadata

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(BadInput, match="cannot save"), CheckpointWriter(run, 10) as writer:
        writer.save({"latest": {"weights": {"w": np.zeros(3)}}}, metadata)
    assert require_checkpoint(run, "latest").metadata == metadata


def test_damaged_start_is_refused(trained, copied, tmp_path):
    run, _ = copied
    (run / "checkpoints/latest/10/meta/metadata").write_bytes(b"{}")
    chained = small_config(trained[0], init_from=str(run), workdir=str(tmp_path / "next"))
    with pytest.raises(BadInput, match=r"damaged: meta/metadata .* repeat that run's own command"):
        commands.train(chained)


@pytest.mark.parametrize("damage", ["missing", "changed", "cut"])
def test_damaged_steps_csv_costs_its_old_rows_alone(trained, copied, capsys, damage):
    """A checkpoint has the length and SHA-256 of steps.csv and the smoothed loss, but no rows."""
    run, options = copied
    shutil.rmtree(run / "checkpoints/latest/10")  # so that five steps are repeated
    content = (run / "steps.csv").read_bytes()
    if damage == "missing":
        (run / "steps.csv").unlink()
    else:
        changed = content[:200] if damage == "cut" else b"X" + content[1:]
        (run / "steps.csv").write_bytes(changed)
    commands.train(small_config(trained[0], **options))
    assert "training continues without its old rows" in capsys.readouterr().err
    (steps, history), (all_steps, all_history) = tables(run), tables(trained[0] / "run")
    pd.testing.assert_frame_equal(
        steps, all_steps.iloc[5:].reset_index(drop=True), check_exact=True
    )
    pd.testing.assert_frame_equal(history, all_history, check_exact=True)
    kept = run / "steps.csv.damaged"
    assert not kept.exists() if damage == "missing" else kept.read_bytes() == changed
    commands.evaluate(small_config(trained[0], **options))
    commands.report(small_config(trained[0], **options))


def test_checkpoint_size_does_not_grow_with_the_run(tmp_path):
    def size(checkpoint):
        return sum(path.stat().st_size for path in checkpoint.rglob("meta/*"))

    commands.train(small_config(tmp_path, **{"train.epochs": 12}))
    latest = sorted((tmp_path / "run/checkpoints/latest").iterdir(), key=lambda p: int(p.name))
    first = small_config(tmp_path, workdir=str(tmp_path / "first"), **{"train.epochs": 1})
    commands.train(first)
    assert latest[-1].name == "60"
    assert size(latest[-1]) - size(tmp_path / "first/checkpoints/latest/5") < 40  # digits


def test_allowed_changes_are_recorded(trained, copied, capsys, monkeypatch):
    run, options = copied
    change = options | {"optim.weight_decay": 0.02, "train.epochs": 3}
    with pytest.raises(BadInput, match=r"set train\.allow_changes=True to continue"):
        commands.train(small_config(trained[0], **change))
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --another")
    commands.train(small_config(trained[0], **change, **{"train.allow_changes": True}))
    warnings = capsys.readouterr().err
    assert "train.allow_changes: optim.weight_decay, train.epochs changed" in warnings
    assert "started with other xla_flags: the result may differ" in warnings
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["allowed_changes"] == [
        {"after_step": 10, "before": {"train.epochs": 2, "optim.weight_decay": 0.01}}
    ]
    assert recorded["config"]["train.epochs"] == 3
    assert len(pd.read_csv(run / "steps.csv")) == 15
    provenance = require_checkpoint(run, "latest").metadata.provenance
    assert provenance.allowed_changes == recorded["allowed_changes"]
    commands.train(small_config(trained[0], **change))  # it is now the run's saved config
    assert "this run is finished" in capsys.readouterr().out
    more = options | {"train.allow_changes": True, "data.batch_size": 8}
    with pytest.raises(BadInput, match=r"cannot continue after step"):
        commands.train(small_config(trained[0], **more))


def test_full_disk_loses_nothing_that_was_saved(trained, tmp_path, monkeypatch):
    """Saves that the clock triggers, here after every step, lose nothing either."""
    folder, _ = trained
    run = tmp_path / "run"
    config = small_config(folder, workdir=str(run), **{"train.save_minutes": 1e-9})
    save, add = ocp.Checkpointer.save, log.Table.add

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_but_3(self, path, **kwargs):
        full() if path.name == "3" else save(self, path, **kwargs)

    def add_but_6(self, *row):
        full() if row[0] == 6 else add(self, *row)

    for owner, name, fails, saved in (
        (ocp.Checkpointer, "save", save_but_3, 2),
        (log.Table, "add", add_but_6, 6),
        (matplotlib.figure.Figure, "savefig", full, 10),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fails)
            with pytest.raises((BadInput, OSError)) as caught:
                commands.train(config)
        assert "No space left" in (resource_error(caught.value) or str(caught.value))
        assert require_checkpoint(run, "latest").metadata.step == saved
        assert not list(run.rglob(".tmp-*"))
    commands.train(config)
    for one, other in zip(tables(run), tables(folder / "run"), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert (run / "history.png").exists()
    stalls = pd.read_csv(run / "steps.csv")["save_stall"]
    starts = stalls.index.isin([0, 2, 6])  # each is the first step of a process
    assert (stalls[starts] == 0).all()
    assert (stalls[~starts] > 0).all()


def test_run_of_an_older_version_is_evaluated_and_continued_by_a_next_stage(copied, trained):
    """The checkpoint has format 1, with older option names; the run cannot be resumed."""
    run, options = copied
    saved = json.loads((ROOT / "tests/data/metadata_format_1.json").read_text())
    for kind in ("latest", "best"):
        for checkpoint in (run / "checkpoints" / kind).iterdir():
            meta = checkpoint / "meta" / "metadata"
            now = json.loads(meta.read_text())
            old = saved | {
                "step": now["step"],
                "train_rows": now["train_fingerprint"],
                "valid_rows": now["valid_fingerprint"],
            }
            old["config"] = saved["config"] | {
                "seed": 0, "data.size": 32, "data.batch_size": 4, "train.epochs": 2,
                "model.name": "tiny", "model.weights": "random",
            }  # fmt: skip
            meta.write_text(json.dumps(old))
            (checkpoint / "digests.json").unlink()
            seal(checkpoint)
    scores = commands.evaluate(small_config(trained[0], **options))
    assert scores["chips"] == 4
    commands.export(small_config(trained[0], **options))
    more = options | {"train.epochs": 3, "train.allow_changes": True}
    with pytest.raises(BadInput, match="started by an older planet_jax"):
        commands.train(small_config(trained[0], **more))
    after = small_config(trained[0], init_from=str(run), workdir=str(run.parent / "next"))
    commands.train(after)
    assert require_checkpoint(run.parent / "next", "latest").metadata.epoch_offset == 2


def test_leftovers_of_a_killed_process_are_removed_from_a_finished_run(trained, copied):
    run, options = copied
    leftovers = [run / "checkpoints" / "latest" / name for name in (".old-a-5", ".tmp-1")]
    for folder in leftovers:
        folder.mkdir()
    commands.train(small_config(trained[0], **options))
    assert not any(folder.exists() for folder in leftovers)
