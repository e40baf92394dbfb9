"""Test the metadata of a checkpoint, and the checks of its options at a resume."""

import dataclasses
import json
from pathlib import Path

import pytest

from planet_jax.config import get_config
from planet_jax.model.classifier import IMAGENET
from planet_jax.runtime.errors import BadInput
from planet_jax.train.log import LogState, Mark, Smooth
from planet_jax.train.metadata import Metadata, Provenance
from planet_jax.train.resume import changed_options
from tests.support import ROOT

RUN = Path("runs/old")


@pytest.fixture(scope="module")
def metadata():
    """Return the metadata of a run with today's defaults, after 7 of 10 steps."""
    log = LogState(Mark(400, "5" * 64), Mark(90, "6" * 64), Smooth(0.7, 7), 1, 0.1 + 0.2)
    return Metadata(
        step=7, steps=10, steps_per_epoch=5, epoch_offset=3, classes=("a", "b"),
        train_chips=20, valid_chips=4, train_fingerprint="1" * 64, valid_fingerprint="2" * 64,
        provenance=Provenance.current(get_config(), IMAGENET), log=log,
    )  # fmt: skip


def test_metadata_is_read_as_it_was_written(metadata):
    assert Metadata.from_json(json.loads(json.dumps(metadata.to_json()))) == metadata


def test_stage_is_complete_with_all_steps_and_scores(metadata):
    assert not metadata.is_complete
    last = dataclasses.replace(metadata, step=10)
    assert not last.is_complete  # its second epoch is not scored
    scored = dataclasses.replace(metadata.log, epochs=2)
    assert dataclasses.replace(last, log=scored).is_complete


def test_metadata_of_format_1_is_read():
    content = json.loads((ROOT / "tests" / "data" / "metadata_format_1.json").read_text())
    old = Metadata.from_json(content)
    assert (old.step, old.steps, old.classes) == (9, 10, ("a", "b", "c"))
    assert old.provenance.config["score.tta"] == content["config"]["score.tta"]
    assert old.log is None


@pytest.mark.parametrize("number", [4, None])
def test_unknown_format_is_refused(metadata, number):
    with pytest.raises(BadInput, match=f"has format {number}; this planet_jax reads up to 3"):
        Metadata.from_json(metadata.to_json() | {"format": number})


def test_a_run_before_normalizations_were_kept_had_imagenets(metadata):
    content = metadata.to_json() | {"format": 2}
    content["provenance"] = {
        k: v for k, v in content["provenance"].items() if k not in ("mean", "std")
    }
    assert Metadata.from_json(content).provenance.normalization == IMAGENET


def with_options(metadata, renamed, **options):
    """Return metadata whose config has other option names and values."""
    saved = {renamed.get(name, name): v for name, v in metadata.provenance.config.items()}
    provenance = dataclasses.replace(metadata.provenance, config=saved | options)
    return dataclasses.replace(metadata, provenance=provenance)


def test_options_saved_under_older_names_are_compared_by_todays(metadata):
    older = {"optim.pct_start": "optim.warm_up", "score.ensemble": "score.runs"}
    assert changed_options(with_options(metadata, older), get_config(), RUN) == {}
    other = with_options(metadata, older, **{"optim.warm_up": 0.5, "score.runs": ["runs/a"]})
    with pytest.raises(BadInput, match=r"^runs/old was .* options: optim\.pct_start was 0\.5 and"):
        changed_options(other, get_config(), RUN)
    allowing = get_config()
    allowing.train.allow_changes = True
    assert changed_options(other, allowing, RUN) == {"optim.pct_start": 0.5}


def test_unknown_saved_option_is_refused(metadata):
    unknown = with_options(metadata, {"data.size": "data.sizes"})
    with pytest.raises(BadInput, match=r"runs/old has the option data\.sizes, which this version"):
        changed_options(unknown, get_config(), RUN)
