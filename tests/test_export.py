"""The export of a small trained run: without this package it gives what predict gives."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import write_chips
from jax import export
from PIL import Image
from safetensors.numpy import load_file
from test_loop import small_config
from test_results import SKY, write_run

from planet_jax import commands
from planet_jax.data.augment import render
from planet_jax.model.classifier import IMAGENET_MEAN, IMAGENET_STD
from planet_jax.results.export import function as serving
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import find_damage

HIDDEN = ("planet_jax", "flax", "optax", "orbax", "safetensors", "pandas", "numba", "scipy.stats")
ALONE = f"""
import runpy, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HIDDEN}: raise ImportError(name + " is not here")
sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def resnet50_config(folder, **options):
    return small_config(folder, **{"model.name": "resnet50"} | options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was exported, and what predict says of its chips."""
    folder = tmp_path_factory.mktemp("export")
    write_chips(folder / "root", SKY, size=70)
    config = resnet50_config(folder, **{"predict.folder": str(folder / "root" / "train-jpg")})
    write_run(config)
    commands.predict(config)
    commands.export(config)
    return folder


def chips_of(run, table):
    files = [run / "root" / "train-jpg" / f"{name}.jpg" for name in table["image_name"]]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def example(run, *arguments, **environment):
    command = [sys.executable, "-I", "-c", ALONE, str(run / "run" / "export" / "example.py")]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd="/", capture_output=True, text=True, timeout=300,
        env={"JAX_PLATFORMS": "cpu", **environment}, check=False,
    )  # fmt: skip


def test_the_example_alone_says_what_predict_says(run, tmp_path):
    table = pd.read_csv(run / "run" / "predictions.csv", keep_default_na=False)[:3]
    np.save(tmp_path / "chips.npy", chips_of(run, table))
    done = example(run, tmp_path / "chips.npy")
    assert done.returncode == 0, done.stderr
    for line, row in zip(done.stdout.splitlines(), table.to_dict("records"), strict=True):
        tags, probabilities = re.fullmatch(r"(.*) (\{.*\})", line).groups()
        assert tags == row["tags"]
        assert json.loads(probabilities) == pytest.approx(
            {name: row[name] for name in list(row)[2:]}, abs=1e-6
        )
    assert find_damage(run / "run" / "export") == ""


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 32, 2000, 3), np.uint8, "too large: 1024 pixels at most"),
        ((1, 32, 32, 3), np.float32, "expected uint8 and called with float32"),
        ((32, 32, 3), np.uint8, "Rank mismatch"),
    ],
)
def test_wrong_chips_get_one_line(run, tmp_path, shape, dtype, told):
    np.save(tmp_path / "chips.npy", np.zeros(shape, dtype))
    refused(example(run, tmp_path / "chips.npy"), told)


def test_another_version_or_platform_gets_one_line(run, tmp_path):
    (tmp_path / "run" / "export").mkdir(parents=True)
    for name in ("example.py", "model.json"):
        shutil.copy(run / "run" / "export" / name, tmp_path / "run" / "export" / name)
    chips = np.zeros((1, 32, 32, 3), np.uint8)
    np.save(tmp_path / "chips.npy", chips)
    elsewhere = export.export(jax.jit(lambda x: x.mean((1, 2))), platforms=("tpu",))(chips)
    later = replace(elsewhere, platforms=("cpu",), calling_convention_version=99)
    for function, told in (
        (elsewhere, "platforms.*tpu.*cpu"),
        (later, "calling convention 99 is too new"),
    ):
        (tmp_path / "run" / "export" / "serving.bin").write_bytes(function.serialize())
        refused(example(tmp_path, tmp_path / "chips.npy"), told)


def refused(done, told):
    assert done.returncode == 1
    assert re.search(told, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("size", "height", "width"),
    [(32, 32, 32), (32, 64, 64), (64, 33, 47), (32, 65, 70), (49, 99, 1024), (49, 1, 2)],
)
def test_the_resize_is_validations_to_the_bit(size, height, width):
    chips = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    found = jax.jit(serving.resize, static_argnums=1)(chips, size)
    np.testing.assert_array_equal(found, render(chips, None, size))


def test_the_function_is_for_every_platform_and_any_chips(run):
    function = export.deserialize(bytearray((run / "run" / "export" / "serving.bin").read_bytes()))
    assert function.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval) for aval in function.in_avals] == ["uint8[b,h,w,3]"]


def test_torch_computes_the_same_from_the_weights(run):
    """torchvision's backbone and a head of torch's layers, where both are installed."""
    torch = pytest.importorskip("torch")
    torch.library.register_fake = lambda *_, **__: lambda f: f  # as in test_torch.py
    torchvision = pytest.importorskip("torchvision")
    nn = torch.nn
    path = run / "run" / "export" / "model.safetensors"
    state = {name: torch.tensor(array) for name, array in load_file(path).items()}
    resnet = torchvision.models.resnet50()
    missing, left_over = resnet.load_state_dict(state, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert {name.split(".")[0] for name in left_over} == {"head"}
    head = nn.Sequential(
        nn.Identity(), nn.Flatten(), nn.BatchNorm1d(4096), nn.Dropout(0.25), nn.Linear(4096, 512),
        nn.ReLU(), nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, 6),
    )  # fmt: skip
    own = {name.removeprefix("head."): state[name] for name in left_over}
    assert not any(head.load_state_dict(own, strict=False))
    table = pd.read_csv(run / "run" / "predictions.csv", keep_default_na=False)[:3]
    pixels = torch.tensor(render(chips_of(run, table), None, 32)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        body = nn.Sequential(*list(resnet.eval().children())[:-2])
        features = body((pixels - mean) / std)
        pooled = torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)
        found = torch.sigmoid(head.eval()(pooled)).numpy()
    np.testing.assert_allclose(found, table.iloc[:, 2:], atol=1e-5)


def test_the_weights_are_the_runs(run):
    weights = load_file(run / "run" / "export" / "model.safetensors")
    config = resnet50_config(run)
    config.model.weights = str(run / "run" / "export" / "model.safetensors")
    config.workdir = str(run / "again")
    stage = commands._stage(config)
    trained = commands._stage(resnet50_config(run), trained=True).trained_variables()
    jax.tree.map(np.testing.assert_array_equal, stage.start_state().variables, trained)
    assert weights["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"score.ensemble": ("a",)}, "score.ensemble"),
        ({"score.test_time_augmentation": "fastai"}, "score.test_time_augmentation = fastai"),
        ({"score.decision_rule": "expected_f2"}, "decides by thresholds"),
        ({"score.decision_rule": "per_class", "score.calibrate": True}, "score.calibrate"),
        ({"score.calibrate": True}, r"decisions\.json: not there; evaluate"),
    ],
)
def test_what_no_export_can_hold_is_refused(run, options, told):
    before = (run / "run" / "export" / "model.json").read_bytes()
    with pytest.raises(BadInput, match=told):
        commands.export(resnet50_config(run, **options))
    assert (run / "run" / "export" / "model.json").read_bytes() == before
