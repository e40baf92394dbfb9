import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import matplotlib.figure
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
from conftest import ROOT, needs_shared, write_chips

from planet_jax import commands
from planet_jax.config import flatten, get_config
from planet_jax.runtime import signals
from planet_jax.runtime.errors import BadInput, RunFailed, resource_error
from planet_jax.train import checkpoint, log, loop
from planet_jax.train.stage import Stage

LABELS = ["a", "b", "a b", "c"] * 6  # 20 chips to train on, 4 to validate: 5 steps an epoch


def small_config(folder, **options):
    config = get_config()
    config.workdir = str(folder / "run")
    config.data.root = str(folder / "root")
    config.data.cache = str(folder / "cache")
    config.data.size, config.data.batch_size = 32, 4
    config.model.name, config.model.weights = "tiny", "random"
    config.train.epochs = 2
    config.update_from_flattened_dict(options)
    if not (folder / "root").exists():
        write_chips(folder / "root", LABELS)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two epochs, its folder and its config."""
    folder = tmp_path_factory.mktemp("loop")
    config = small_config(folder)
    commands.train(config)
    return folder, config


def test_the_run_folder_is_as_designed(trained):
    run = trained[0] / "run"
    steps, history = pd.read_csv(run / "steps.csv"), pd.read_csv(run / "history.csv")
    assert list(steps.columns[:9]) == [
        "step", "loss", "smooth_loss", "lr_group0", "lr_group1", "lr_group2", "beta1",
        "images_per_second", "input_wait",
    ]  # fmt: skip
    assert list(history.columns) == [
        "epoch", "train_loss", "valid_loss", "accuracy_thresh", "fbeta", "time",
    ]  # fmt: skip
    assert steps["step"].tolist() == list(range(10))
    assert history["epoch"].tolist() == [0, 1]
    assert history["train_loss"].tolist() == steps["smooth_loss"].iloc[[4, 9]].tolist()
    assert steps["lr_group2"].iloc[0] == pytest.approx(2e-2 / 25)
    assert steps["lr_group2"].max() == pytest.approx(2e-2)
    assert (run / "history.png").exists()
    assert (run / "config.json").exists()
    assert not [path for path in run.iterdir() if path.name.startswith(".tmp")]


def test_a_finished_run_says_so_and_changes_nothing(trained, capsys):
    folder, config = trained
    before = (folder / "run" / "steps.csv").read_bytes()
    commands.train(config)
    assert "this run is finished" in capsys.readouterr().out
    assert (folder / "run" / "steps.csv").read_bytes() == before


def test_other_knobs_or_a_second_process_are_refused(trained):
    folder, config = trained
    with pytest.raises(BadInput, match=r"optim\.weight_decay was 0\.01 and is 0\.02"):
        commands.train(small_config(folder, **{"optim.weight_decay": 0.02}))
    with (
        commands._only_process_in(folder / "run"),
        pytest.raises(BadInput, match="another process"),
    ):
        commands.train(config)


def test_evaluate_scores_the_checkpoint_exactly(trained, capsys):
    folder, config = trained
    config = small_config(folder, checkpoint="latest")
    commands.evaluate(config)
    history = pd.read_csv(folder / "run" / "history.csv").iloc[-1]
    scores = pd.read_json(folder / "run" / "metrics.json", typ="series")
    for name in ("valid_loss", "accuracy_thresh", "fbeta"):
        assert scores[name] == pytest.approx(history[name], rel=1e-6)
    assert "best constant prediction" in capsys.readouterr().out


def test_predict_writes_tags_and_probabilities(trained):
    folder, config = trained
    config = small_config(folder, **{"predict.folder": str(folder / "root" / "train-jpg")})
    commands.predict(config)
    table = pd.read_csv(folder / "run" / "predictions.csv", keep_default_na=False)
    assert list(table.columns) == ["image_name", "tags", "a", "b", "c"]
    assert sorted(table["image_name"]) == sorted(f"chip{i}" for i in range(len(LABELS)))
    for row in table.itertuples():
        assert row.tags == " ".join(c for c in "abc" if getattr(row, c) > 0.2)


def test_the_next_stage_starts_from_the_last_weights_at_another_size(trained):
    folder, config = trained
    chained = small_config(
        folder, init_from=config.workdir, workdir=str(folder / "next"),
        **{"data.size": 64, "optim.freeze": False},
    )  # fmt: skip
    stage = commands._stage(chained)
    state = stage.start_state()
    first, before = (next(s.train_batches()) for s in (stage, commands._stage(config)))
    assert (first["targets"] != before["targets"]).any()  # epoch 2 of the chain, not epoch 0 again
    saved, _ = checkpoint.read_weights(folder / "run", "latest")
    for name, leaf in checkpoint.to_host(state.variables).items():
        np.testing.assert_array_equal(leaf, saved[name])
    assert int(state.step) == 0
    assert not any(np.asarray(m).any() for m in checkpoint.to_host(state.opt_state).values())
    other = small_config(folder, init_from=config.workdir, workdir=str(folder / "other"))
    other.data.root = str(write_chips(folder / "renamed", [t.replace("c", "d") for t in LABELS]))
    with pytest.raises(BadInput, match=r"another vocabulary than .* differ in: c, d"):
        commands._stage(other).start_state()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small_config(tmp_path, **{"optim.lr": (1e25,), "train.save_every": 1})
    with pytest.raises(RunFailed, match=r"is not finite at step \d; .* is kept"):
        commands.train(config)
    weights, meta = checkpoint.read_weights(tmp_path / "run", "latest")
    assert all(np.isfinite(leaf).all() for leaf in weights.values())
    assert meta["step"] >= 1


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(trained, tmp_path, capsys):
    folder, config = trained
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    for file in (run / "checkpoints" / "latest" / "10" / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    config = small_config(folder, workdir=str(run))
    shutil.rmtree(run / "checkpoints" / "latest" / "10" / "meta")
    commands.train(config)
    told = capsys.readouterr().err
    assert "latest/10: this checkpoint is damaged" in told
    assert "the one before it is used" in told
    assert "goes on after step 5 of 10" in told
    same = [outcome(r) for r in (run, folder / "run")]
    pd.testing.assert_frame_equal(same[0][0], same[1][0], check_exact=True)


def test_a_changed_run_goes_on_when_forced_and_config_json_notes_it(trained, tmp_path, capsys):
    folder, _ = trained
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    change = {"optim.weight_decay": 0.02, "train.epochs": 3}
    with pytest.raises(BadInput, match=r"set train\.allow_changes=True to go on"):
        commands.train(small_config(folder, workdir=str(run), **change))
    commands.train(
        small_config(folder, workdir=str(run), **change, **{"train.allow_changes": True})
    )
    assert "goes on although optim.weight_decay, train.epochs changed" in capsys.readouterr().err
    noted = json.loads((run / "config.json").read_text())
    assert noted["forced"] == [
        {"after_step": 10, "was": {"train.epochs": 2, "optim.weight_decay": 0.01}}
    ]
    assert noted["config"]["train.epochs"] == 3
    assert len(pd.read_csv(run / "steps.csv")) == 15
    _, meta = checkpoint.read_weights(run, "latest")
    assert meta["forced"] == noted["forced"]
    commands.train(small_config(folder, workdir=str(run), **change))  # it is the run's config now
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"not even train\.allow_changes can go on"):
        commands.train(
            small_config(
                folder, workdir=str(run), **{"train.allow_changes": True, "data.batch_size": 8}
            )
        )


def test_orbaxs_own_manager_reads_a_checkpoint(trained):
    with ocp.CheckpointManager(trained[0] / "run" / "checkpoints" / "latest") as manager:
        found = manager.restore(10, args=ocp.args.Composite(weights=ocp.args.StandardRestore()))
    ours, meta = checkpoint.read_weights(trained[0] / "run", "latest")
    assert found["weights"].keys() == ours.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, found["weights"][name])
    assert meta["classes"] == ["a", "b", "c"]
    assert meta["versions"]["jax"] == jax.__version__


def test_a_damaged_start_is_not_replaced_by_an_older_one_in_silence(trained, tmp_path):
    folder, _ = trained
    first = tmp_path / "first"
    shutil.copytree(folder / "run", first)
    (first / "checkpoints" / "latest" / "10" / "meta" / "metadata").write_bytes(b"{}")
    chained = small_config(folder, init_from=str(first), workdir=str(tmp_path / "next"))
    with pytest.raises(BadInput, match=r"damaged: meta/metadata .* give that run's own command"):
        commands.train(chained)


def test_a_disk_that_is_full_again_and_again_costs_nothing_that_was_saved(
    trained, tmp_path, monkeypatch
):
    """Nor do saves whose moment the clock decides: here, after every step."""
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
        assert checkpoint.read_meta(run, "latest")["step"] == saved
        assert not list(run.rglob(".tmp-*"))
    commands.train(config)
    (steps, history, *_), other = outcome(folder / "run"), outcome(run)
    pd.testing.assert_frame_equal(steps, other[0], check_exact=True)
    pd.testing.assert_frame_equal(history, other[1], check_exact=True)
    assert (run / "history.png").exists()
    stalls = pd.read_csv(run / "steps.csv")["save_stall"]
    began = stalls.index.isin([0, 2, 6])  # with these steps a process began
    assert (stalls[began] == 0).all()
    assert (stalls[~began] > 0).all()


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_even_the_start_with_one_line(tmp_path, how, status):
    process = start(tmp_path / "none.py")
    time.sleep(0.5)
    process.send_signal(how)
    output, _ = process.communicate(timeout=5)
    assert process.returncode == status
    assert len(output.splitlines()) == 1
    assert "the same command goes on" in output


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nat x"), "batch_size"),
        (MemoryError(), "batch_size"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system"),
        (ValueError("page\nRESOURCE_EXHAUSTED: No space left on device"), "free some room"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, line):
    assert line in resource_error(error)
    assert "\n" not in resource_error(error)
    assert resource_error(ValueError("a bug")) is None


def test_other_validation_chips_are_refused_by_evaluate(trained):
    folder, _ = trained
    with pytest.raises(BadInput, match="with other chips, labels, split or subset"):
        commands.evaluate(small_config(folder, **{"data.split_seed": 7}))


def test_what_is_refused_leaves_no_run_folder(tmp_path):
    config = small_config(tmp_path, **{"data.batch_size": 64})
    with pytest.raises(BadInput, match="20 chips to train on"):
        commands.train(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match="20 chips to train on"):
        commands.lr_range(config)


def start(config_file, *flags, command="train"):
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "planet_jax.main", command, "--config", str(config_file), *flags],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def config_file(folder):
    """`small_config` for a process of its own, which has one device."""
    options = flatten(small_config(folder, **{"train.save_every": 2}))
    file = folder / "small.py"
    file.write_text(
        "from planet_jax.config import get_config as base\n"
        "def get_config():\n"
        "    config = base()\n"
        f"    config.update_from_flattened_dict({options!r})\n"
        "    return config\n"
    )
    return file


def kill_after(process, run, rows, how):
    """Signals once steps.csv has so many rows."""
    table = run / "steps.csv"
    while process.poll() is None and (
        not table.exists() or len(table.read_text().splitlines()) <= rows
    ):
        time.sleep(0.01)
    process.send_signal(how)
    output, _ = process.communicate(timeout=120)
    return output


def outcome(run):
    steps = pd.read_csv(run / "steps.csv").drop(
        columns=["images_per_second", "input_wait", "save_stall"]
    )
    history = pd.read_csv(run / "history.csv").drop(columns="time")
    with checkpoint.Checkpoints(run) as checkpoints:
        step, items, _ = checkpoints.latest()
    return steps, history, step, items


def test_a_killed_run_ends_as_the_untouched_one(tmp_path):
    """Bit for bit: every row, weight and moment; SIGTERM saves at once and ends with 143."""
    file, run = config_file(tmp_path), tmp_path / "killed"
    untouched = start(file, f"--config.workdir={tmp_path / 'whole'}")  # at the same time
    kill_after(start(file, f"--config.workdir={run}"), run, 3, signal.SIGKILL)
    process = start(file, f"--config.workdir={run}")
    output = kill_after(process, run, 6, signal.SIGTERM)
    assert process.returncode == 143, output
    assert len(pd.read_csv(run / "steps.csv")) < 10
    for process in (untouched, start(file, f"--config.workdir={run}")):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    (steps, history, step, items), other = (outcome(tmp_path / n) for n in ("whole", "killed"))
    pd.testing.assert_frame_equal(steps, other[0], check_exact=True)
    pd.testing.assert_frame_equal(history, other[1], check_exact=True)
    assert step == other[2] == 10
    for part, leaves in items.items():
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, other[3][part][name])


@pytest.mark.parametrize("cut", [0, 1])  # which epoch's scores: the best is that of either
def test_scores_that_sigterm_cut_short_are_made_up_for(tmp_path, monkeypatch, cut):
    """Found by the harness: the best was saved with the weights of a later step, and a run that had
    all its steps counted as finished without its last scores."""
    evaluate, epochs = Stage.evaluate, []

    def stopped(stage, *given):
        epochs.append(len(epochs))
        if epochs[-1] == cut:
            signal.raise_signal(signal.SIGTERM)
            raise signals.Stopped(143)
        return evaluate(stage, *given)

    config = small_config(tmp_path, workdir=str(tmp_path / "cut"), **{"train.save_every": 3})
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "evaluate", stopped)
        with pytest.raises(signals.Stopped):
            commands.train(config)
    assert not loop.finished(config, tmp_path / "cut")
    runs = [tmp_path / "cut", tmp_path / "whole"]
    for run in runs:
        commands.train(small_config(tmp_path, workdir=str(run), **{"train.save_every": 3}))
    best = [sorted(path.name for path in (run / "checkpoints" / "best").iterdir()) for run in runs]
    assert best[0] == best[1]
    (steps, history, *_), other = map(outcome, runs)
    pd.testing.assert_frame_equal(steps, other[0], check_exact=True)
    pd.testing.assert_frame_equal(history, other[1], check_exact=True)
    assert len(history) == 2


@pytest.mark.slow
def test_a_run_of_four_devices_is_read_by_one(trained):
    folder, _ = trained  # whose checkpoints four devices saved
    one = ("--config.checkpoint=latest", "--config.data.batch_size=2")  # which four cannot share
    process = start(config_file(folder), *one, command="evaluate")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    history = pd.read_csv(folder / "run" / "history.csv").iloc[-1]
    scores = pd.read_json(folder / "run" / "metrics.json", typ="series")
    assert scores["valid_loss"] == pytest.approx(history["valid_loss"], rel=1e-4)


@needs_shared
@pytest.mark.slow
def test_steps_csv_tells_fastais_one_cycle(tmp_path, reference):
    """50 steps of a real run: 10 epochs of 5 here, 5 of 10 there, the same cycle."""
    commands.train(small_config(tmp_path, **{"train.epochs": 10}))
    steps = pd.read_csv(tmp_path / "run" / "steps.csv")
    expected = reference["one_cycle_n50"]
    lrs = steps[["lr_group0", "lr_group1", "lr_group2"]]
    np.testing.assert_allclose(lrs, expected["lr"], rtol=1e-5)
    np.testing.assert_allclose(steps["beta1"], expected["beta1"], rtol=1e-5)
