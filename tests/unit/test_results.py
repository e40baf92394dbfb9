"""Test evaluate and predict on a small run: files, decisions, views, a submission."""

import ast
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from planet_jax import commands
from planet_jax.data import loader
from planet_jax.data.labels import read_labels, split
from planet_jax.model import classifier, weights
from planet_jax.model.classifier import Normalization
from planet_jax.results import inference, predict
from planet_jax.runtime.errors import BadInput
from planet_jax.train.checkpoint import require_checkpoint, to_host
from planet_jax.train.stage import make_stage
from planet_jax.train.start import find_start, initial_state
from planet_jax.train.validate import compute_logits
from tests.support import ROOT, small_config, write_chips
from tests.trained_run import SKY, write_trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write a run on chips with weather tags: 32 training chips, 8 validation chips."""
    folder = tmp_path_factory.mktemp("results")
    write_chips(folder / "root", SKY)
    write_trained_run(small_config(folder))
    return folder


def read(path):
    return pd.read_csv(path, keep_default_na=False)


def test_evaluate_prints_a_table_and_writes_files(run, capsys):
    commands.evaluate(small_config(run))
    assert "highest expected F2, calibrated, weather rule" in capsys.readouterr().out
    metrics = json.loads((run / "run" / "metrics.json").read_text())
    assert len(metrics["decisions"]) == 10
    for name in ("valid_loss", "accuracy_thresh", "fbeta"):
        low, high = metrics["intervals"][name]
        assert low <= metrics[name] <= high
        assert low < high
    assert metrics["decision"]["fbeta"] == metrics["fbeta"] == metrics["decisions"][0]["fbeta"]
    assert set(metrics["per_class"]["water"]) == {
        "precision", "recall", "fbeta", "average_precision", "support", "brier", "intervals",
    }  # fmt: skip
    assert sum(b["entries"] for b in metrics["reliability"]["raw"]["bins"]) == 8 * 6
    chips, mistakes = read(run / "run" / "chips.csv"), read(run / "run" / "mistakes.csv")
    labels = read_labels(run / "root")
    assert sorted(chips["image_name"]) == sorted(labels.names[i] for i in split(40, 0.2, 42)[1])
    assert chips["loss"].is_monotonic_decreasing
    assert chips["loss"].mean() == pytest.approx(metrics["valid_loss"], rel=1e-6)
    assert chips["fbeta"].mean() == pytest.approx(metrics["fbeta"], abs=1e-6)
    wrong = chips[chips["tags"] != chips["predicted"]]
    pd.testing.assert_frame_equal(mistakes, wrong.reset_index(drop=True))
    missed = sum(
        swap["chips"] for swap in metrics["co_occurrence"]["swaps"] if swap["missed"] == "water"
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
def test_predict_uses_the_decision_that_evaluate_fitted(run, options):
    commands.evaluate(small_config(run, **options))
    stored = json.loads((run / "run" / "decisions.json").read_text())
    options = options | {"predict.folder": str(run / "root" / "train-jpg")}
    commands.predict(small_config(run, **options))
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
    with pytest.raises(BadInput, match=r"threshold was 0\.2 and is 0\.3; run evaluate with these"):
        commands.predict(small_config(run, **options | {"score.threshold": 0.3}))


def test_mistakes_can_be_trained_on(run, tmp_path):
    options = {"score.split": "train", "score.threshold": 0.5}
    commands.evaluate(small_config(run, **options))
    mistakes = run / "run" / "mistakes_train.csv"
    names = set(read(mistakes)["image_name"])
    assert len(names) >= 8
    config = small_config(
        run, init_from=str(run / "run"), workdir=str(tmp_path / "again"),
        **{"data.subset": str(mistakes)},
    )  # fmt: skip
    next_stage = make_stage(config)
    chosen = {next_stage.data.labels.names[row] for row in next_stage.train_rows}
    assert chosen == names
    assert find_start(config).previous.run == run / "run"
    commands.evaluate(small_config(run))
    with pytest.raises(BadInput, match=r"names no training chip.*score\.split=train"):
        make_stage(small_config(run, **{"data.subset": str(run / "run" / "chips.csv")}))


def test_fastai_views_follow_fastais_source(run):
    """The result is 0.4 x the plain chip + 0.6 x the mean of eight augmented views.

    The views are zoomed corners; four of them are flipped.
    """
    config = small_config(run, **{"score.test_time_augmentation": "fastai", "data.decoded": False})
    stage = make_stage(config)
    (model,) = inference.load_models(config, inference.open_runs(config))
    source = partial(loader.score_batches, stage.data, stage.valid_rows)
    logits = inference.ensemble_logits([model], source, 8, "scoring")
    chips = stage.data.chips[stage.valid_rows]

    def p(pixels):
        parts = [{"chips": pixels[i : i + 4]} for i in (0, 4)]
        logits = compute_logits(stage.predict_step, model.variables, parts, 8, "by hand")
        return 1 / (1 + np.exp(-logits))

    views = []
    for i in range(8):
        rng = loader.named_rng(0, "tta", i)
        drawn = loader.draw(rng, 8, 10.0, 1.05, 0.1, 0.75)
        drawn.zoom[:], drawn.row_pct[:], drawn.col_pct[:] = 1.35, i % 2, i // 2 % 2
        pixels = loader.render(chips, drawn, 32)
        views.append(p(pixels[:, :, ::-1] if i >= 4 else pixels))
    expected = 0.4 * p(loader.render(chips, None, 32)) + 0.6 * np.mean(views, 0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=1e-5)


def test_submission_has_the_rows_of_the_sample_in_its_order(run, tmp_path):
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
        commands.predict(config)
        return read(run / "run" / "submission.csv")

    by_number = submit()
    assert list(by_number.columns) == ["image_name", "tags"]
    assert by_number["image_name"].tolist() == ["test_0", "test_2", "test_10", "file_0", "file_1"]
    sample = root / "sample_submission_v2.csv"
    sample.write_text("image_name,tags\nfile_1,primary\ntest_2,primary\ntest_0,primary\n")
    by_sample = submit()
    assert by_sample["image_name"].tolist() == ["file_1", "test_2", "test_0"]
    tags = read(run / "run" / "predictions.csv").set_index("image_name")["tags"]
    assert len(tags) == 5
    assert by_sample["tags"].tolist() == [tags[name] for name in by_sample["image_name"]]
    sample.write_text("image_name,tags\ntest_0,\ntest_7,\nfile_3,\n")
    with pytest.raises(BadInput, match="2 of its chips are missing: test_7, file_3"):
        submit()


def test_missing_decisions_or_weather_are_refused(run, tmp_path):
    folder = {"predict.folder": str(run / "root" / "train-jpg")}
    (run / "run" / "decisions.json").unlink(missing_ok=True)
    with pytest.raises(BadInput, match=r"decisions\.json: does not exist; run evaluate first"):
        commands.predict(small_config(run, **folder, **{"score.calibrate": True}))
    no_weather = small_config(tmp_path, workdir=str(run / "run"), **{"score.weather_rule": True})
    with pytest.raises(BadInput, match="needs the labels clear, partly_cloudy, haze and cloudy"):
        commands.evaluate(no_weather)


@pytest.fixture
def odd_folder(tmp_path):
    """Return a folder with four good images, two that cannot be read, and other files."""
    folder = tmp_path / "odd"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.jpg", "a.png", "b.JPG", "inner/a.jpg"):
        Image.new("RGB", (64, 64), (90, 120, 60)).save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    (folder / "gone.tif").symlink_to("nowhere.tif")
    (folder / "._a.jpg").write_bytes(b"macOS")
    (folder / "scene.jp2").write_bytes(b"JPEG 2000")
    return folder


def test_predict_skips_what_cannot_be_read_and_says_so(run, odd_folder, tmp_path, capfd):
    """The data root may be missing, because the run stores its labels."""
    options = {"predict.folder": str(odd_folder), "data.root": str(tmp_path / "nowhere")}
    commands.predict(small_config(run, **options))
    table, skipped = (read(run / "run" / f"{name}.csv") for name in ("predictions", "skipped"))
    assert table["image_name"].tolist() == ["a.jpg", "a.png", "b"]
    assert skipped["image_name"].tolist() == ["cut", "gone"]
    assert "truncated" in skipped["reason"][0].lower()
    output, errors = capfd.readouterr()
    assert output.splitlines()[-1].endswith("skipped.csv: 2 images cannot be read and are skipped")
    assert "1 files are not" in errors
    assert "scene.jp2" in errors
    assert "left out inner; predict.subfolders=True" in errors
    with pytest.raises(BadInput, match=r"cut\.jpg: cannot be decoded"):
        commands.predict(small_config(run, **options, **{"predict.strict": True}))
    commands.predict(small_config(run, **options, **{"predict.subfolders": True}))
    names = read(run / "run" / "predictions.csv")["image_name"].tolist()
    assert names == ["a.jpg", "a.png", "b", "inner/a"]
    one = options | {"predict.folder": str(odd_folder / "b.JPG")}
    commands.predict(small_config(run, **one))
    assert read(run / "run" / "predictions.csv")["image_name"].tolist() == ["b"]
    assert not (run / "run" / "skipped.csv").exists()
    with pytest.raises(BadInput, match="none of 1 images can be read"):
        commands.predict(small_config(run, **one | {"predict.folder": str(odd_folder / "cut.jpg")}))


def test_a_submission_needs_every_chip(run, odd_folder):
    options = {"predict.folder": str(odd_folder), "predict.submission": True}
    with pytest.raises(BadInput, match=r"no submission\.csv, because 2 of its chips .*cut, gone"):
        commands.predict(small_config(run, **options))


def test_a_label_may_be_named_like_a_column(tmp_path):
    labels = ["fbeta", "image_name", "loss", "tags"]
    write_chips(tmp_path / "root", [*labels, "tags loss b", "b"] * 4)
    config = small_config(tmp_path, **{"score.resamples": 20})
    commands.train(config)
    commands.evaluate(config)
    config.predict.folder, config.predict.submission = str(tmp_path / "root" / "train-jpg"), True
    commands.predict(config)
    commands.report(config)
    run = tmp_path / "run"
    chips, mistakes = read(run / "chips.csv"), read(run / "mistakes.csv")
    assert len(mistakes) == (chips.iloc[:, 3] != chips.iloc[:, 4]).sum()
    header = (run / "predictions.csv").read_text().splitlines()[0]
    assert header == "image_name,tags," + ",".join(["b", *labels])
    assert len(read(run / "submission.csv")) == 24
    assert "Chips" in (run / "report.html").read_text()


def test_a_fresh_head_keeps_the_backbone_of_other_labels(run, tmp_path, capfd):
    write_chips(tmp_path / "root", ["d", "d e", "e", "f"] * 6)
    config = small_config(tmp_path, init_from=str(run / "run"))
    with pytest.raises(BadInput, match=r"was trained on; they differ .* set model\.head=fresh"):
        initial_state(make_stage(config), find_start(config))
    config.model.head = "fresh"
    state = initial_state(make_stage(config), find_start(config))
    assert "model.head=fresh: the backbone is from" in capfd.readouterr().err
    ours, before = to_host(state.variables), require_checkpoint(run / "run", "latest")
    fresh = to_host(classifier.init(3, 0, "tiny"))
    for name, array in before.arrays("weights").items():
        expected = fresh[name] if "/head/" in name else array
        np.testing.assert_array_equal(ours[name], expected)

    exported = tmp_path / "exported.safetensors"
    variables = classifier.init(6, 1, "tiny")
    save_file(weights.to_torchvision(variables), exported)
    config = small_config(tmp_path, **{"model.weights": str(exported)})
    with pytest.raises(BadInput, match=r"head\.8\..* set model\.head=fresh"):
        initial_state(make_stage(config), find_start(config))
    config.model.head = "fresh"
    ours = to_host(initial_state(make_stage(config), find_start(config)).variables)
    for name, array in to_host(variables).items():
        np.testing.assert_array_equal(ours[name], fresh[name] if "/head/" in name else array)


def test_normalization_travels_from_the_weights_to_the_scores(tmp_path, capsys):
    """It is the weights' own, in a later stage too; an option that differs is refused."""
    own = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    write_chips(tmp_path / "root", SKY)
    file = tmp_path / "weights.safetensors"
    about = {name: json.dumps(values) for name, values in own._asdict().items()}
    save_file(weights.to_torchvision(classifier.init(6, 1, "tiny")), file, about)
    first = small_config(tmp_path, **{"model.weights": str(file)})
    write_trained_run(first)
    second = small_config(tmp_path, init_from=first.workdir, workdir=str(tmp_path / "second"))
    commands.summary(second)  # before it has a checkpoint
    assert "mean 0.5, 0.4, 0.3; std 0.2, 0.3, 0.4" in capsys.readouterr().out
    write_trained_run(second)
    for config in (first, second):
        (model,) = inference.load_models(config, inference.open_runs(config))
        assert model.network.normalization == own
        commands.summary(config)
        assert "mean 0.5, 0.4, 0.3; std 0.2, 0.3, 0.4\n" in capsys.readouterr().out
    given = Normalization((0.1, 0.1, 0.1), (1.0, 1.0, 1.0))
    options = {"model.mean": given.mean, "model.std": given.std}
    assert find_start(small_config(tmp_path / "x", **options)).normalization == given
    third = small_config(tmp_path / "x", init_from=first.workdir, **options)
    with pytest.raises(BadInput, match=r"was trained with mean \(0\.5, .* leave both empty"):
        find_start(third)


def test_write_csv_writes_what_pandas_writes(tmp_path):
    table = pd.DataFrame({"name": ['a"b', "c,d", "e"], "loss": [0.1, 1e-12, 123456789.0]})
    table = pd.concat([table, pd.DataFrame(np.eye(3) / 7, columns=["name", "x", "y"])], axis=1)
    for part in (table, table.iloc[:, :1], table.iloc[:, 1:], table.iloc[:0]):
        predict.write_csv(tmp_path / "a.csv", part)
        assert (tmp_path / "a.csv").read_text() == part.to_csv(index=False, float_format="%.8g")


@pytest.mark.parametrize(
    "module", ["evaluate", "evaluation", "fitted_decisions", "predict", "submission"]
)
def test_pure_modules_import_neither_jax_nor_training(module):
    tree = ast.parse((ROOT / "planet_jax" / "results" / f"{module}.py").read_text())
    imported = {
        f"{node.module}.{name.name}" if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    impure = ("jax.", "flax", "orbax", "planet_jax.train", "planet_jax.results.inference")
    assert not [name for name in imported if f"{name}.".startswith(impure)]
