"""Test the trackers: what they get, a resume, and that none can stop or delay a run."""

import json
import subprocess
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from planet_jax import commands
from planet_jax.runtime.errors import BadInput
from planet_jax.train import loop, tracker_kinds, trackers
from tests.support import assert_same_run, small_config


class Recorder:
    """A tracker of the user: keeps what it gets."""

    calls: list = []  # noqa: RUF012

    def __init__(self, run, options, step, epoch):
        self.calls.append(("start", run.name, options["data.size"], step, epoch))

    def add(self, table, row):
        self.calls.append((table, row))

    def picture(self, name, path):
        self.calls.append((name, path.read_bytes()[:4]))

    def close(self, is_complete):
        self.calls.append(("close", is_complete))


def failing(method):
    """Return a tracker that raises at one of its calls."""

    def fail(self, *arguments):
        raise SystemExit(f"{method} failed\nin two lines")

    return type("Failing", (Recorder,), {method: fail, "calls": []})


def hang(*arguments):
    threading.Event().wait()


FailsAtStart, FailsAtAdd = failing("__init__"), failing("add")
FailsAtPicture, FailsAtClose = failing("picture"), failing("close")
HangsAtClose = type("HangsAtClose", (Recorder,), {"calls": [], "close": hang})


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Let wandb write files alone, and none to the home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


def scalars(folder):
    """Return the curves of a TensorBoard folder, as TensorBoard reads them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    curves = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {t: [(e.step, e.value) for e in curve] for t, curve in curves.items()}, events


def wandb_records(folder):
    """Return the records of a run's offline file, as wandb prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in output.splitlines()]
    kinds = {record["type"] for record in records}
    return {k: [record[k] for record in records if record["type"] == k] for k in kinds}


def rows_of(path):
    return pd.read_csv(path).to_dict("records")


def test_a_resumed_run_continues_its_curves(tmp_path, monkeypatch, offline):
    """The first run ends after its last rows, before their checkpoint; all of epoch 1 is repeated.

    What the readers of TensorBoard and wandb find is equal to steps.csv and history.csv.
    """
    config = small_config(tmp_path)
    config.track.to = ("tensorboard", "wandb", f"{__name__}:Recorder")
    monkeypatch.setattr(Recorder, "calls", [])
    run, save = tmp_path / "run", loop._Saver.save

    def fail_at_the_end(saver, step, *arguments):
        if step == 10:
            raise RuntimeError("crash")
        save(saver, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Saver, "save", fail_at_the_end)
        with pytest.raises(RuntimeError, match="crash"):
            commands.train(config)
    before = {table: rows_of(run / f"{table}.csv") for table in ("steps", "history")}
    hooks = sys.exit, sys.excepthook
    commands.train(config)
    assert (sys.exit, sys.excepthook) == hooks
    after = {table: rows_of(run / f"{table}.csv") for table in ("steps", "history")}
    assert [len(rows) for tables in (before, after) for rows in tables.values()] == [10, 2, 10, 2]

    for table, rows in after.items():
        curves, events = scalars(run / "tensorboard" / table)
        number, *columns = rows[0]
        assert curves == {
            name: [(row[number], np.float32(row[name])) for row in rows] for name in columns
        }
        if table == "steps":
            assert (
                events.Images("history")[0].encoded_image_string
                == (run / "history.png").read_bytes()
            )
            (text,) = events.Tensors("options/text_summary")[-1].tensor_proto.string_val
            assert json.loads(text)["data.size"] == 32

    first, second = map(wandb_records, sorted((run / "wandb").glob("offline-run-*")))
    ids = {record["run_id"] for kinds in (first, second) for record in kinds["run"]}
    assert ids == {(run / "wandb" / "id").read_text()}
    assert second["run"][0]["config"]["update"]["data.size"] == 32
    logged = [
        [{k: v for k, v in record["item"].items() if k[0] != "_"} for record in kinds["history"]]
        for kinds in (first, second)
    ]
    # wandb adds the last step to the row of an epoch.
    epochs = [row | {"step": 5 * row["epoch"] + 4} for row in before["history"]]
    again = after["history"][1] | {"step": 9}
    assert logged[0] == [*before["steps"][:5], epochs[0], *before["steps"][5:], epochs[1]]
    assert logged[1][:-1] == [*after["steps"][5:], again]
    assert logged[1][-1]["history._type"] == "image-file"
    assert [kinds["exit"][0].get("exit_code", 0) for kinds in (first, second)] == [1, 0]

    (start, *calls), rest = Recorder.calls[:14], Recorder.calls[14:]
    assert start == ("start", "run", 32, 0, 0)
    assert calls == [
        *(("steps", row) for row in before["steps"][:5]), ("history", before["history"][0]),
        *(("steps", row) for row in before["steps"][5:]), ("history", before["history"][1]),
        ("close", False),
    ]  # fmt: skip
    assert rest == [
        ("start", "run", 32, 5, 1), *(("steps", row) for row in after["steps"][5:]),
        ("history", after["history"][1]), ("history", b"\x89PNG"), ("close", True),
    ]  # fmt: skip


def test_a_row_that_wandbs_server_has_is_not_sent_again(tmp_path, monkeypatch, offline):
    """A resumed run of wandb has the newest values that the server knows as its summary."""
    rows = []
    run = types.SimpleNamespace(
        summary={"step": 6, "epoch": 0}, log=rows.append, define_metric=lambda *_, **__: None,
        offline=False, url="",
    )  # fmt: skip
    monkeypatch.setattr(wandb, "init", lambda **settings: run)
    tracker = tracker_kinds.WeightsAndBiases(tmp_path, {}, 5, 0)
    for step in (5, 6, 7):
        tracker.add("steps", {"step": step})
    for epoch in (0, 1):
        tracker.add("history", {"epoch": epoch})
    assert rows == [{"step": 7}, {"epoch": 1}]


def test_no_tracker_can_stop_or_change_a_run(trained, tmp_path, monkeypatch, capsys):
    """Trackers that raise at each call, and two that hang: the run has the same files and bits."""
    folder, _ = trained
    names = ("FailsAtStart", "FailsAtAdd", "FailsAtPicture", "FailsAtClose", "HangsAtClose", "hang")
    config = small_config(folder, workdir=str(tmp_path / "run"))
    config.track.to = tuple(f"{__name__}:{name}" for name in names)
    monkeypatch.setattr(trackers, "END_SECONDS", 1.0)
    monkeypatch.setattr(trackers, "CALLS", 5)
    commands.train(config)
    hanging = [thread for thread in threading.enumerate() if thread.name.startswith("track.to")]
    assert len(hanging) == 2
    assert all(thread.daemon for thread in hanging)  # Python ends without them
    assert_same_run(folder / "run", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints", "config.json", "steps.csv", "history.csv", "history.png", ".lock",
    }  # fmt: skip
    errors = capsys.readouterr().err.splitlines()
    for name in names[:4]:
        (line,) = (line for line in errors if f"{name}: off from here on" in line)
        assert line.endswith("failed in two lines)")
    for name in names[4:]:
        assert any(f"{name}: did not end within 1 s" in line for line in errors)
    assert sum(":hang: slower than the training" in line for line in errors) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", r"track\.to = tensorbord: did you mean tensorboard\?"),
        ("mlflow", r"track\.to = mlflow: valid: MODULE:NAME, tensorboard, wandb"),
        ("wandb", r"track\.to = wandb: pip install '\.\[wandb\]'"),
        ("no_such_module:Mine", r"no_such_module cannot be imported \(ModuleNotFoundError: No mod"),
        ("json:JSONEncode", r"JSONEncode is not a class or function; did you mean JSONEncoder\?"),
    ],
)
def test_unknown_trackers_are_refused_before_any_work(tmp_path, monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
    with pytest.raises(BadInput, match=message):
        commands.train(small_config(tmp_path, **{"track.to": (name,)}))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
