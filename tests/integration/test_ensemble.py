"""Test averages of runs: their sizes, and which of them score a chip."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from planet_jax import commands
from planet_jax.runtime.errors import BadInput
from tests.support import small_config, write_chips
from tests.trained_run import SKY, write_trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write a run on chips with weather tags: 32 training chips, 8 validation chips."""
    folder = tmp_path_factory.mktemp("ensemble")
    write_chips(folder / "root", SKY)
    write_trained_run(small_config(folder))
    return folder


def read(path):
    return pd.read_csv(path, keep_default_na=False)


@pytest.mark.slow
def test_ensemble_members_keep_their_own_size(run, tmp_path):
    other = small_config(run, workdir=str(tmp_path / "other"), seed=1, **{"data.size": 64})
    write_trained_run(other)
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


def test_each_chip_is_scored_by_the_members_that_did_not_train_on_it(run, tmp_path):
    """Two members validate on fold 0, one on fold 1; together they score every chip."""
    members, expected = [], {}
    for seed, fold in ((0, 0), (1, 0), (2, 1)):
        options = {"seed": seed, "data.folds": 2, "data.fold": fold, "optim.freeze": False}
        member = small_config(run, workdir=str(tmp_path / f"{seed}"), **options)
        write_trained_run(member)
        commands.evaluate(member)
        members.append(member.workdir)
        table = read(tmp_path / f"{seed}" / "chips.csv").set_index("image_name").iloc[:, 4:]
        expected.setdefault(fold, []).append(table)
    config = small_config(
        run, workdir=str(tmp_path / "all"),
        **{"score.ensemble": tuple(members), "score.explain": 2},
    )  # fmt: skip
    # with the notebook's split, which the members do not have
    assert commands.evaluate(config)["chips"] == 40
    found = read(tmp_path / "all" / "chips.csv").set_index("image_name").iloc[:, 4:]
    mean = pd.concat([sum(tables) / len(tables) for tables in expected.values()])
    assert set(found.index) == set(mean.index)
    np.testing.assert_allclose(found.loc[mean.index], mean, atol=2e-6)
    with pytest.raises(BadInput, match=r"split = train: some members have other validation chips"):
        commands.evaluate(small_config(
            run, workdir=str(tmp_path / "all"),
            **{"score.ensemble": tuple(members), "score.split": "train"},
        ))  # fmt: skip
    commands.report(config)
    page = (tmp_path / "all" / "report.html").read_text()
    assert "average of" in page
    for workdir in members:
        assert f"--config.workdir={workdir}" in page

    options = {
        "score.ensemble": tuple(members), "predict.folder": str(run / "root" / "train-jpg"),
        "workdir": str(tmp_path / "all"),
    }  # fmt: skip
    commands.predict(small_config(run, **options))
    raw = read(tmp_path / "all" / "predictions.csv").iloc[:, 2:].astype(float)
    options |= {"score.decision_rule": "per_class", "score.calibrate": True}
    commands.predict(small_config(run, **options))
    decided = read(tmp_path / "all" / "predictions.csv")
    fitted = json.loads((tmp_path / "all" / "decisions.json").read_text())
    for i, label in enumerate(raw.columns):  # decided by what was fitted out of fold
        line = fitted["calibration"][label]
        p = expit(line["slope"] * logit(raw[label]) + line["intercept"])
        np.testing.assert_allclose(decided.iloc[:, 2 + i].astype(float), p, atol=1e-4)
        predicted = [label in tags.split() for tags in decided["tags"]]
        assert predicted == (raw[label] > fitted["thresholds"][label]).tolist()
