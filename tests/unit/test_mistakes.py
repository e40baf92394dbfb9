"""Test that user mistakes give one line and exit status 2, before any work."""

import sys
import warnings

import jax
import pytest
from absl.testing import flagsaver

from planet_jax import main
from tests.support import ROOT, assert_refusal

REFUSED = {
    "command": (
        ["trian", "--config=configs/smoke.py"], "trian is not a command; did you mean train"
    ),
    "two": (["train", "now", "--config", "configs/smoke.py"], "now is not a command"),
    "no config": ([], "--config is missing; try --config smoke"),
    "file": (["--config", "configs/smok.py"], "no such file; did you mean configs/smoke.py?"),
    "option": (
        ["--config=configs/smoke.py", "--config.optim.lrr=3"],
        "config.optim.lrr is not an option; did you mean optim.lr?",
    ),
    "renamed": (
        ["--config=configs/smoke.py", "--config.score.tta=dihedral"],
        "--config.score.tta is now config.score.test_time_augmentation",
    ),
    "two runs": (
        ["evaluate", "--config=configs/smoke.py", "--config.score.ensemble=nowhere,there"],
        "nowhere: no best",
    ),
    "type": (["--config=configs/smoke.py", "--config.data.size=big"], "--config.data.size=big"),
    "range": (["--config=configs/smoke.py", "--config.data.size=1"], "at least 32"),
    "flag": (["--confg=configs/smoke.py"], "--confg is not a flag; did you mean --config?"),
    "folder": (
        ["--config=configs/smoke.py", "--config.data.source=folder", "--config.data.root=nowhere"],
        "nowhere/train_v2.csv: no label file",
    ),
    "workdir": (
        ["show_batch", "--config=configs/smoke.py", "--config.workdir=/dev/null/x"],
        "config.workdir = /dev/null/x: cannot be written to",
    ),
    "journey": (
        ["journey", "--config=configs/demo.py", "--config.workdir=runs/x"],
        "config.workdir differs per stage",
    ),
    "no py": (["--config", "configs/stage1"], "no such file; did you mean configs/stage1.py?"),
    "stage": (["--config", "configs/demo.py:stage3"], "no such stage; did you mean stage"),
    "no weights": (
        ["--config=configs/smoke.py", "--config.model.weights=a.safetensors"], "no such file"
    ),
    "no first stage": (
        ["--config=configs/smoke.py", "--config.init_from=nowhere"], "nowhere: no latest"
    ),
    "no run": (
        ["evaluate", "--config=configs/smoke.py", "--config.workdir=nowhere"], "nowhere: no best",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections
@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_get_one_line_and_status_2(case, capfd, monkeypatch):
    arguments, message = REFUSED[case]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])  # ml_collections reads it
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main replaces it
    cache = jax.config.jax_compilation_cache_dir
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        main.main(main.parse(sys.argv))
    jax.config.update("jax_compilation_cache_dir", cache)
    assert_refusal(stop.value.code, *capfd.readouterr(), message)
