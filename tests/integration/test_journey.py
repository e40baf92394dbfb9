"""Run the journey of the shipped demo, made smaller, over its four chained stages."""

import json

import pandas as pd
import pytest
from PIL import Image

from planet_jax import commands
from planet_jax.config import get_config
from planet_jax.config_file import load
from planet_jax.runtime.errors import BadInput
from tests.support import ROOT, write_chips

STAGES = ("stage1", "stage2", "stage1_256", "stage2_256")


def test_journey(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    config = load("configs/demo.py")
    shrunk = {"sample.chips": 40, "sample.test_chips": 5, "train.epochs": 1, "lr_range.steps": 17}
    commands.journey(config, shrunk)
    output = capsys.readouterr().out
    assert "F2 of the best constant prediction on them" in output
    runs = [tmp_path / "runs" / "demo" / stage for stage in STAGES]
    for run, size, frozen in zip(runs, (64, 64, 128, 128), (True, False) * 2, strict=True):
        assert len(pd.read_csv(run / "history.csv")) == 1
        assert len(pd.read_csv(run / "steps.csv")) == 2  # 32 chips in batches of 16
        options = json.loads((run / "config.json").read_text())["config"]
        assert (options["data.size"], options["optim.freeze"]) == (size, frozen)
        pictures = {"history.png", "show_batch.png"} | ({"lr_range.png"} if frozen else set())
        assert {path.name for path in run.glob("*.png")} == pictures
        for picture in pictures:
            assert Image.open(run / picture).convert("L").getextrema() == (0, 255)
    assert len(pd.read_csv(runs[0] / "lr_range.csv")) > 1
    predictions = pd.read_csv(runs[-1] / "predictions.csv")
    assert len(predictions) == 5
    scores = json.loads((runs[-1] / "metrics.json").read_text())
    assert scores["chips"] == 8
    assert list(predictions.columns[2:]) == list(scores["per_class"])
    assert scores["checkpoint"] == "latest"
    assert output.splitlines()[-1] == "runs/demo/stage2_256/report.html: open it in a browser"
    page = (runs[-1] / "report.html").read_text()
    assert "stage1 → stage2 → stage1_256 → stage2_256" in page
    assert 'class="missing"' not in page

    commands.journey(config, shrunk)  # finished stages are not repeated
    assert capsys.readouterr().out.count("this run is finished") == 4

    (runs[1] / "history.png").unlink()  # as after a kill between the last step and the picture
    commands.journey(config, shrunk)
    assert (runs[1] / "history.png").exists()


def test_a_journey_without_test_chips_ends_with_a_report(tmp_path, monkeypatch, capsys):
    """The stage's config is beside the journey's config, not in the current folder."""
    write_chips(tmp_path / "root")
    (tmp_path / "configs").mkdir()
    options = {
        "workdir": str(tmp_path / "run"), "data.root": str(tmp_path / "root"),
        "data.cache": str(tmp_path / "cache"), "data.size": 32, "data.batch_size": 4,
        "model.name": "tiny", "model.weights": "random", "train.epochs": 1,
        "lr_range.in_journey": False,
    }  # fmt: skip
    (tmp_path / "configs" / "stage.py").write_text(
        "from planet_jax.config import get_config as base\n\n"
        "def get_config():\n    config = base()\n"
        f"    config.update_from_flattened_dict({options!r})\n    return config\n"
    )
    config = get_config()
    config.stages = ("stage.py",)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    commands.journey(config, file=str(tmp_path / "configs" / "journey.py"))
    output = capsys.readouterr().out
    assert "nothing to predict: no images in" in output
    assert "F2 of the best constant prediction" in output
    assert output.splitlines()[-1].endswith("report.html: open it in a browser")
    (tmp_path / "root" / "test-jpg").mkdir()
    (tmp_path / "root" / "test-jpg" / "bad.jpg").write_bytes(b"no")
    with pytest.raises(BadInput, match="none of 1 images can be read"):
        commands.journey(config, file=str(tmp_path / "configs" / "journey.py"))
    assert "report.html: open it" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(BadInput, match=r"predict\.folder = nowhere: no such"):
        commands.journey(
            config, {"predict.folder": "nowhere"}, file=str(tmp_path / "configs" / "journey.py")
        )


def test_a_journey_over_folds_ends_with_one_average(tmp_path, monkeypatch, capsys):
    """Both stages of both folds are averaged; each chip is scored by the fold that held it out."""
    monkeypatch.chdir(tmp_path)
    config = load("demo")
    config.workdir = "runs/average"
    config.stages = ("demo:stage1", "demo:stage2")
    config.journey.folds, config.journey.members = 2, config.stages
    options = {
        "sample.chips": 40, "sample.test_chips": 5, "train.epochs": 1, "model.name": "tiny",
        "predict.submission": True, "score.decision_rule": "per_class", "lr_range.steps": 17,
    }  # fmt: skip
    commands.journey(config, options)
    output = capsys.readouterr().out
    assert "F2 on 40 chips, each scored by the runs that were not trained on it" in output
    assert "F2 with a threshold per class: " in output
    average = tmp_path / "runs" / "average"
    names = [f"runs/demo/{stage}-fold{fold}" for fold in (0, 1) for stage in ("stage1", "stage2")]
    metrics = json.loads((average / "metrics.json").read_text())
    assert (metrics["chips"], metrics["ensemble"]) == (40, names)
    assert len(pd.read_csv(average / "submission.csv")) == 5
    options_of_fold = json.loads((tmp_path / names[3] / "config.json").read_text())["config"]
    assert options_of_fold["init_from"] == "runs/demo/stage1-fold1"
    page = (average / "report.html").read_text()
    assert "average of" in page
    assert all(name in page for name in names)

    written = (average / "metrics.json").stat().st_mtime_ns
    commands.journey(config, options)  # nothing is repeated
    assert capsys.readouterr().out.count("this run is finished") == 4
    assert (average / "metrics.json").stat().st_mtime_ns == written

    config.journey.members = ("demo:stage2",)  # other results, from the same runs
    commands.journey(config, options)
    assert capsys.readouterr().out.count("this run is finished") == 4
    assert json.loads((average / "metrics.json").read_text())["ensemble"] == names[1::2]
    assert (
        json.loads((average / "config.json").read_text())["config"]["score.ensemble"] == names[1::2]
    )
