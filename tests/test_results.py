"""evaluate and predict of a small trained run: files, decisions, views, ensembles, a submission."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_chips
from PIL import Image
from test_loop import small_config

from planet_jax import commands
from planet_jax.config import flatten
from planet_jax.data import loader
from planet_jax.data.labels import read_labels, split
from planet_jax.results import inference
from planet_jax.runtime.errors import BadInput
from planet_jax.train import checkpoint
from planet_jax.train.stage import Stage

SKY = ["clear primary", "cloudy", "haze water", "partly_cloudy primary water", "clear water"] * 8


def write_run(config):
    """A run folder as training leaves it, but with random weights, scaled to logits of size 1."""
    stage = Stage(config, commands.prepare(config))
    weights = checkpoint.to_host(stage.start_state().variables)
    variables = checkpoint.from_host(weights, stage.start_state().variables, "here")
    source = inference.rows_source(stage.train_rows)(stage, None)
    logits = stage.logits(variables, source, len(stage.train_rows), "scaling")
    weights["params/head/linear2/kernel"] /= logits.std()
    meta = {
        "step": 8, "steps": 8, "epoch_offset": 0, "config": flatten(config),
        "classes": list(stage.data.labels.classes), **stage.rows_digests(),
    }  # fmt: skip
    with checkpoint.Checkpoints(Path(config.workdir)) as checkpoints:
        checkpoints.save(8, {kind: {"weights": weights} for kind in ("latest", "best")}, meta)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on chips that have weather: 32 to train on, 8 to validate."""
    folder = tmp_path_factory.mktemp("results")
    write_chips(folder / "root", SKY)
    write_run(small_config(folder))
    return folder


@pytest.fixture(scope="module")
def stage(run):
    """That run's stage, so that its step is compiled once."""
    return commands._stage(small_config(run), trained=True)


def read(path):
    return pd.read_csv(path, keep_default_na=False)


def test_evaluate_tells_people_and_tools(run, stage, capsys):
    commands.evaluate(small_config(run), stage)
    told = capsys.readouterr().out
    assert "highest expected F2, calibrated, rule of the weather" in told
    figures = json.loads((run / "run" / "metrics.json").read_text())
    assert len(figures["decisions"]) == 10
    for name in ("valid_loss", "accuracy_thresh", "fbeta"):
        low, high = figures["intervals"][name]
        assert low <= figures[name] <= high
        assert low < high
    assert figures["decision"]["fbeta"] == figures["fbeta"] == figures["decisions"][0]["fbeta"]
    assert set(figures["per_class"]["water"]) == {
        "precision", "recall", "fbeta", "average_precision", "support", "brier", "intervals",
    }  # fmt: skip
    assert sum(b["entries"] for b in figures["reliability"]["raw"]["bins"]) == 8 * 6
    chips, mistakes = read(run / "run" / "chips.csv"), read(run / "run" / "mistakes.csv")
    labels = read_labels(run / "root")
    assert sorted(chips["image_name"]) == sorted(labels.names[i] for i in split(40, 0.2, 42)[1])
    assert chips["loss"].is_monotonic_decreasing
    assert chips["loss"].mean() == pytest.approx(figures["valid_loss"], rel=1e-6)
    assert chips["fbeta"].mean() == pytest.approx(figures["fbeta"], abs=1e-6)
    wrong = chips[chips["tags"] != chips["predicted"]]
    pd.testing.assert_frame_equal(mistakes, wrong.reset_index(drop=True))
    missed = sum(
        swap["chips"] for swap in figures["co_occurrence"]["swaps"] if swap["missed"] == "water"
    )
    by_hand = sum(
        len(set(row.predicted.split()) - set(row.tags.split()))
        for row in chips.itertuples()
        if "water" in set(row.tags.split()) - set(row.predicted.split())
    )
    assert missed == by_hand


@pytest.mark.parametrize(
    "options",
    [
        {"score.decision_rule": "per_class"},
        {"score.decision_rule": "expected_f2", "score.calibrate": True, "score.weather_rule": True},
    ],
)
def test_predict_decides_by_what_evaluate_fitted(run, stage, options):
    commands.evaluate(small_config(run, **options), stage)
    stored = json.loads((run / "run" / "decisions.json").read_text())
    options = options | {"predict.folder": str(run / "root" / "train-jpg")}
    commands.predict(small_config(run, **options), stage)
    table = read(run / "run" / "predictions.csv")
    classes = list(stored["thresholds"])
    assert list(table.columns) == ["image_name", "tags", *classes]
    for row in table.to_dict("records"):
        tags = row["tags"].split()
        if options["score.decision_rule"] == "per_class":
            assert tags == [c for c in classes if row[c] > stored["thresholds"][c]]
        else:
            assert len({"clear", "cloudy", "haze", "partly_cloudy"} & set(tags)) == 1
            assert tags == ["cloudy"] or "cloudy" not in tags
    with pytest.raises(BadInput, match=r"threshold was 0\.2 and is 0\.3; evaluate with these"):
        commands.predict(small_config(run, **options | {"score.threshold": 0.3}), stage)


def test_training_on_the_misclassified_is_one_command(run, stage, tmp_path):
    options = {"score.split": "train", "score.threshold": 0.5}
    commands.evaluate(small_config(run, **options), stage)
    mistakes = run / "run" / "mistakes_train.csv"
    names = set(read(mistakes)["image_name"])
    assert len(names) >= 8
    config = small_config(
        run, init_from=str(run / "run"), workdir=str(tmp_path / "again"),
        **{"data.subset": str(mistakes)},
    )  # fmt: skip
    next_stage = commands._stage(config)
    chosen = {next_stage.data.labels.names[row] for row in next_stage.train_rows}
    assert chosen == names
    with pytest.raises(BadInput, match=r"names no chip that is trained on.*score\.split=train"):
        commands._stage(small_config(run, **{"data.subset": str(run / "run" / "chips.csv")}))


def test_fastais_scheme_is_what_its_source_says(run):
    """0.4 plain + 0.6 of eight zoomed corners, four of them flipped, the training transforms on."""
    config = small_config(run, **{"score.test_time_augmentation": "fastai", "data.decoded": False})
    stage = Stage(config, commands.prepare(config))
    source = inference.rows_source(stage.valid_rows)
    found = inference.logits([stage], source, 8, "scoring")
    variables = stage.trained_variables()
    chips = stage.data.chips[stage.valid_rows]

    def p(pixels):
        parts = [{"chips": pixels[i : i + 4]} for i in (0, 4)]
        return 1 / (1 + np.exp(-stage.logits(variables, iter(parts), 8, "by hand")))

    views = []
    for i in range(8):
        rng = loader.named_rng(0, "tta", i)
        drawn = loader.draw(rng, 8, 10.0, 1.05, 0.1, 0.75)
        drawn.zoom[:], drawn.row_pct[:], drawn.col_pct[:] = 1.35, i % 2, i // 2 % 2
        pixels = loader.render(chips, drawn, 32)
        views.append(p(pixels[:, :, ::-1] if i >= 4 else pixels))
    expected = 0.4 * p(loader.render(chips, None, 32)) + 0.6 * np.mean(views, 0)
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), expected, atol=1e-5)


@pytest.mark.slow
def test_an_average_of_runs_takes_each_at_its_own_size(run, tmp_path):
    other = small_config(run, workdir=str(tmp_path / "other"), seed=1, **{"data.size": 64})
    write_run(other)
    folder = {"predict.folder": str(run / "root" / "train-jpg")}
    tables = {}
    for name, config in {
        "a": small_config(run, **folder),
        "b": small_config(run, workdir=other.workdir, **folder, **{"data.size": 64}),
        "both": small_config(
            run, workdir=str(tmp_path / "both"), **folder,
            **{"score.ensemble": (str(run / "run"), other.workdir)},
        ),
    }.items():  # fmt: skip
        commands.predict(config)
        tables[name] = read(f"{config.workdir}/predictions.csv").iloc[:, 2:]
    mean = (tables["a"] + tables["b"]) / 2
    np.testing.assert_allclose(tables["both"], mean, atol=2e-6)
    assert np.abs(tables["a"] - tables["b"]).to_numpy().max() > 1e-3
    commands.evaluate(config)
    assert json.loads((tmp_path / "both" / "metrics.json").read_text())["chips"] == 8
    elsewhere = small_config(run, workdir=str(tmp_path / "x"), **{"data.split_seed": 7})
    elsewhere.score.ensemble = (str(run / "run"),)
    with pytest.raises(BadInput, match="with other chips, labels, split or subset"):
        commands.evaluate(elsewhere)


def test_the_submission_has_the_samples_rows_in_its_order(run, stage, tmp_path):
    root = write_chips(tmp_path / "root", SKY)
    for folder, names in {
        "test-jpg": ["test_10", "test_2", "test_0"],
        "test-jpg-additional": ["file_1", "file_0"],
    }.items():
        (root / folder).mkdir()
        for name in names:
            Image.new("RGB", (64, 64), (90, 120, 60)).save(root / folder / f"{name}.jpg")

    def submit():
        config = small_config(run, **{"predict.submission": True, "data.root": str(root)})
        commands.predict(config, stage)
        return read(run / "run" / "submission.csv")

    by_number = submit()
    assert list(by_number.columns) == ["image_name", "tags"]
    assert by_number["image_name"].tolist() == ["test_0", "test_2", "test_10", "file_0", "file_1"]
    sample = root / "sample_submission_v2.csv"
    sample.write_text("image_name,tags\nfile_1,primary\ntest_2,primary\ntest_0,primary\n")
    found = submit()
    assert found["image_name"].tolist() == ["file_1", "test_2", "test_0"]
    tags = read(run / "run" / "predictions.csv").set_index("image_name")["tags"]
    assert len(tags) == 5
    assert found["tags"].tolist() == [tags[name] for name in found["image_name"]]
    sample.write_text("image_name,tags\ntest_0,\ntest_7,\nfile_3,\n")
    with pytest.raises(BadInput, match="asks for 2 chips that are not there: test_7, file_3"):
        submit()


def test_what_was_not_fitted_or_cannot_be_is_refused(run, stage, tmp_path):
    folder = {"predict.folder": str(run / "root" / "train-jpg")}
    (run / "run" / "decisions.json").unlink(missing_ok=True)
    with pytest.raises(BadInput, match=r"decisions\.json: not there; evaluate this run first"):
        commands.predict(small_config(run, **folder, **{"score.calibrate": True}), stage)
    no_weather = small_config(tmp_path, workdir=str(run / "run"), **{"score.weather_rule": True})
    with pytest.raises(BadInput, match="no clear, partly_cloudy, haze and cloudy"):
        commands.evaluate(no_weather)
