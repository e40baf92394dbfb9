"""Test the run of a stage: its folder, its end, and the stage that starts from it."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest

from planet_jax import commands
from planet_jax.runtime.errors import BadInput, RunFailed
from planet_jax.train import loop
from planet_jax.train.checkpoint import require_checkpoint, to_host
from planet_jax.train.run_folder import exclusive
from planet_jax.train.stage import make_stage
from planet_jax.train.start import find_start, initial_state
from tests.support import LABELS, needs_shared, small_config, write_chips


def stage_and_state(config):
    start = find_start(config, resume=False)
    stage = make_stage(config, start.epoch_offset)
    return stage, initial_state(stage, start)


def test_run_folder_has_the_promised_files_and_columns(trained):
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
    assert json.loads((run / "config.json").read_text())["config"]["model.name"] == "tiny"
    assert not [path for path in run.iterdir() if path.name.startswith(".tmp")]


def test_finished_run_is_not_changed(trained, capsys):
    folder, config = trained
    before = (folder / "run" / "steps.csv").read_bytes()
    commands.train(config)
    assert "this run is finished" in capsys.readouterr().out
    assert (folder / "run" / "steps.csv").read_bytes() == before


def test_other_options_and_a_second_process_are_refused(trained):
    folder, config = trained
    with pytest.raises(BadInput, match=r"optim\.weight_decay was 0\.01 and is 0\.02"):
        commands.train(small_config(folder, **{"optim.weight_decay": 0.02}))
    with exclusive(folder / "run"), pytest.raises(BadInput, match="another process"):
        commands.train(config)


def test_evaluate_scores_the_checkpoint_exactly(trained, capsys):
    folder, _ = trained
    commands.evaluate(small_config(folder, checkpoint="latest"))
    history = pd.read_csv(folder / "run" / "history.csv").iloc[-1]
    scores = pd.read_json(folder / "run" / "metrics.json", typ="series")
    for name in ("valid_loss", "accuracy_thresh", "fbeta"):
        assert scores[name] == pytest.approx(history[name], rel=1e-6)
    assert "best constant prediction" in capsys.readouterr().out


def test_evaluate_refuses_other_validation_chips(trained):
    with pytest.raises(BadInput, match="with other chips, labels, split or subset"):
        commands.evaluate(small_config(trained[0], **{"data.split_seed": 7}))


def test_predict_writes_tags_and_probabilities(trained):
    folder, _ = trained
    config = small_config(folder, **{"predict.folder": str(folder / "root" / "train-jpg")})
    commands.predict(config)
    table = pd.read_csv(folder / "run" / "predictions.csv", keep_default_na=False)
    assert list(table.columns) == ["image_name", "tags", "a", "b", "c"]
    assert sorted(table["image_name"]) == sorted(f"chip{i}" for i in range(len(LABELS)))
    for row in table.itertuples():
        assert row.tags == " ".join(c for c in "abc" if getattr(row, c) > 0.2)


def test_next_stage_starts_from_the_last_weights_at_another_size(trained):
    folder, config = trained
    chained = small_config(
        folder, init_from=config.workdir, workdir=str(folder / "next"),
        **{"data.size": 64, "optim.freeze": False},
    )  # fmt: skip
    stage, state = stage_and_state(chained)
    first, before = (next(s.train_batches()) for s in (stage, stage_and_state(config)[0]))
    assert (first["targets"] != before["targets"]).any()  # epoch 2 of the chain, not epoch 0 again
    saved = require_checkpoint(folder / "run", "latest").arrays("weights")
    for name, leaf in to_host(state.variables).items():
        np.testing.assert_array_equal(leaf, saved[name])
    assert int(state.step) == 0
    assert not any(np.asarray(m).any() for m in to_host(state.opt_state).values())
    other = small_config(folder, init_from=config.workdir, workdir=str(folder / "other"))
    other.data.root = str(write_chips(folder / "renamed", [t.replace("c", "d") for t in LABELS]))
    with pytest.raises(
        BadInput, match=r"are not those that .* was trained on; they differ in: c, d"
    ):
        stage_and_state(other)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small_config(tmp_path, **{"optim.lr": (1e25,), "train.save_every": 1})
    with pytest.raises(RunFailed, match=r"is not finite at step \d; earlier checkpoints are kept"):
        commands.train(config)
    checkpoint = require_checkpoint(tmp_path / "run", "latest")
    assert all(np.isfinite(array).all() for array in checkpoint.arrays("weights").values())
    assert checkpoint.metadata.step >= 1


def test_orbax_reads_a_checkpoint(trained):
    with ocp.CheckpointManager(trained[0] / "run" / "checkpoints" / "latest") as manager:
        restored = manager.restore(10, args=ocp.args.Composite(weights=ocp.args.StandardRestore()))
    ours = require_checkpoint(trained[0] / "run", "latest")
    assert restored["weights"].keys() == ours.arrays("weights").keys()
    for name, array in ours.arrays("weights").items():
        np.testing.assert_array_equal(array, restored["weights"][name])
    assert ours.metadata.classes == ("a", "b", "c")


def test_refused_input_leaves_no_run_folder(tmp_path):
    config = small_config(tmp_path, **{"data.batch_size": 64})
    with pytest.raises(BadInput, match="20 chips to train on"):
        commands.train(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match="20 chips to train on"):
        commands.lr_range(config)


@needs_shared
def test_steps_csv_holds_fastais_one_cycle(tmp_path, reference):
    """The cycle of 50 steps is the same for 10 epochs of 5 steps and fastai's 5 epochs of 10."""
    commands.train(small_config(tmp_path, **{"train.epochs": 10}))
    steps = pd.read_csv(tmp_path / "run" / "steps.csv")
    expected = reference["one_cycle_n50"]
    lrs = steps[["lr_group0", "lr_group1", "lr_group2"]]
    np.testing.assert_allclose(lrs, expected["lr"], rtol=1e-5)
    np.testing.assert_allclose(steps["beta1"], expected["beta1"], rtol=1e-5)


def test_training_ends_early_without_a_better_f2(tmp_path, capsys, monkeypatch):
    """The run is then finished, and its epochs count for the next stage."""
    scores = iter([0.5, 0.6, 0.6, 0.4])
    monkeypatch.setattr(
        loop, "validate",
        lambda *_: {"valid_loss": 0.5, "accuracy_thresh": 0.5, "fbeta": next(scores)},
    )  # fmt: skip
    config = small_config(tmp_path, **{"train.epochs": 9, "train.patience": 2})
    commands.train(config)
    assert "no better F2 in 2 epochs: ends after step 20" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "run" / "history.csv")["epoch"].tolist() == [0, 1, 2, 3]
    assert require_checkpoint(tmp_path / "run", "best").metadata.step == 10
    assert require_checkpoint(tmp_path / "run", "latest").metadata.is_complete
    commands.train(config)
    assert "this run is finished" in capsys.readouterr().out


def test_moving_averages_are_evaluated_and_saved(tmp_path):
    commands.train(small_config(tmp_path, **{"optim.ema_decay": 0.5}))
    history = pd.read_csv(tmp_path / "run" / "history.csv").iloc[-1]
    scores = commands.evaluate(small_config(tmp_path, checkpoint="ema"))
    assert scores["valid_loss"] == pytest.approx(history["ema_valid_loss"], rel=1e-6)
    assert scores["fbeta"] == pytest.approx(history["ema_fbeta"], rel=1e-6)
    assert history["ema_valid_loss"] != history["valid_loss"]


def test_exclusive_labels_are_a_softmax_wherever_the_run_is_used(tmp_path):
    """The run records them: an evaluation without the option gives the same probabilities."""
    commands.train(small_config(tmp_path, **{"model.exclusive": ("a", "b")}))
    commands.evaluate(small_config(tmp_path))
    chips = pd.read_csv(tmp_path / "run" / "chips.csv")
    assert chips[["a", "b"]].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(BadInput, match=r"config\.model\.exclusive: no chip has the label rain"):
        commands.train(
            small_config(
                tmp_path, workdir=str(tmp_path / "b"), **{"model.exclusive": ("rain", "x")}
            )
        )
