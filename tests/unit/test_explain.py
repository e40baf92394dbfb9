"""Test what score.explain adds to an evaluation, and its part of the report."""

import json

import numpy as np
import pytest
from matplotlib.text import Text
from ml_collections import ConfigDict
from PIL import Image
from sklearn.decomposition import PCA

from planet_jax import commands
from planet_jax.data.labels import split
from planet_jax.results import explain_pictures
from planet_jax.results.evaluation import Evaluation
from planet_jax.results.explain import clearest_mistakes, principal_axes
from planet_jax.results.report.explanations import explanations
from planet_jax.results.report.run_folder import MissingPart, RunFolder
from planet_jax.runtime.files import write_json
from tests.support import small_config, write_chips
from tests.trained_run import SKY, write_trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write a run in which one validation chip is a training chip, turned and compressed."""
    folder = tmp_path_factory.mktemp("explain")
    chips = write_chips(folder / "root", SKY) / "train-jpg"
    train, valid = split(40, 0.2, 42)
    with Image.open(chips / f"chip{train[3]}.jpg") as chip:
        copy = chip.transpose(Image.Transpose.ROTATE_90)
    copy.save(chips / f"chip{valid[2]}.jpg", quality=90)
    write_trained_run(small_config(folder))
    return folder


def test_evaluate_explains_the_worst_chips_and_the_report_shows_it(run, capsys):
    config = small_config(run, **{"score.explain": 3, "score.resamples": 20})
    result = commands.evaluate(config)
    output = capsys.readouterr().out.splitlines()
    assert output[-1] == f"{run}/run: wrote maps.png and embeddings.png"
    train, valid = split(40, 0.2, 42)
    (pair,) = result["near_duplicates"]["pairs"]
    assert (pair["valid"], pair["train"]) == (f"chip{valid[2]}", f"chip{train[3]}")
    assert "1 of 8 validation chips" in output[-2]
    assert f"{pair['valid']} is {pair['train']}" in output[-2]
    written = json.loads((run / "run" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert written["explained"] == 3
    chips = (run / "run" / "chips.csv").read_text().splitlines()[1:]
    fbeta = {line.split(",")[0]: float(line.split(",")[2]) for line in chips}
    others = [value for name, value in fbeta.items() if name != pair["valid"]]
    assert written["near_duplicates"]["fbeta_without"] == pytest.approx(np.mean(others), abs=1e-6)

    commands.report(config)
    page = (run / "run" / "report.html").read_text()
    assert f"{pair['valid']} validates, {pair['train']} trains" in page
    assert "--config.score.explain=3" in page
    assert page.count("<img") - page.count('alt="chip') == 2 + 2  # maps, embeddings; a pair
    (run / "run" / "maps.png").unlink()
    folder = RunFolder(run / "run", run / "root")
    with pytest.raises(MissingPart, match=r"maps\.png: `evaluate` with score\.explain draws it"):
        explanations(folder)
    del written["explained"]  # as after an evaluation without the option
    write_json(run / "run" / "metrics.json", written)
    assert "With <code>--config.score.explain=12</code>" in explanations(folder)


def test_training_chips_and_an_ensemble_are_explained_without_a_search(run, capsys):
    members = (str(run / "run"),) * 2
    config = small_config(
        run, **{"score.explain": 5, "score.split": "train", "score.resamples": 20}
    )
    config.score.ensemble = members
    result = commands.evaluate(config)
    assert result["explained"] == 5
    assert "near_duplicates" not in result
    assert capsys.readouterr().out.endswith("wrote maps_train.png and embeddings_train.png\n")
    with Image.open(run / "run" / "maps_train.png") as picture:
        assert picture.height > 3 * 200


def test_the_clearest_mistakes():
    config = ConfigDict({"seed": 0, "score": {
        "threshold": 0.5, "decision_rule": "threshold", "calibrate": False, "weather_rule": False,
        "folds": 2, "resamples": 20,
    }})  # fmt: skip
    p = np.array([[0.9, 0.8, 0.2, 0.1], [0.9, 0.1, 0.1, 0.1], [0.7, 0.6, 0.4, 0.3]])
    targets = np.array([[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1]], np.uint8)
    evaluation = Evaluation(config, np.log(p / (1 - p)), targets, "abcd")
    np.testing.assert_array_equal(
        clearest_mistakes(evaluation, np.array([2, 0, 1])), [[0, 3], [0, 3], [-1, -1]]
    )


@pytest.mark.parametrize("shape", [(30, 5), (4, 60), (1, 3)])
def test_principal_axes_are_scikit_learns(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    points, share = principal_axes(x)
    if shape[0] == 1:
        np.testing.assert_array_equal(points, np.zeros((1, 2)))
        return
    pca = PCA(2).fit(x)
    np.testing.assert_allclose(share, pca.explained_variance_ratio_, rtol=1e-4)
    np.testing.assert_allclose(np.abs(points), np.abs(pca.transform(x)), atol=1e-4)


def test_the_plane_names_only_frequent_labels_and_each_once():
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 500)) < np.linspace(0, 0.3, 500)).astype(np.uint8)
    classes = [f"label of $x {i} with a very long name" for i in range(500)]
    figure = explain_pictures.embeddings(
        rng.standard_normal((300, 2)), np.array([0.5, 0.1]), targets, classes, np.arange(12)
    )
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if "label" in text.get_text()]
    boxes = [Text.get_window_extent(text) for text in texts]  # an annotation's has its line
    assert len(boxes) == explain_pictures.MAX_LABELS
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
