"""Test the export of a small run: it works without this package and gives predict's results."""

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
from huggingface_hub import ModelCard
from jax import export
from PIL import Image
from safetensors.numpy import load_file

from planet_jax import commands
from planet_jax.data.augment import render
from planet_jax.model.classifier import IMAGENET
from planet_jax.results import inference
from planet_jax.results.export.function import resize
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import find_damage
from planet_jax.train.stage import make_stage
from planet_jax.train.start import Start, find_start, initial_state
from tests.hub_server import Hub, use_hub
from tests.support import ROOT, small_config, write_chips
from tests.trained_run import SKY, write_trained_run

ALONE = ROOT / "tests" / "run_alone.py"


def export_run(folder, **options):
    """Export a run at 32 px, and predict its training chips, which are also 32 px wide."""
    write_chips(folder / "root", SKY, size=32)  # at this size convolutions have other forms too
    options |= {"predict.folder": str(folder / "root" / "train-jpg")}
    config = small_config(folder, **options)
    write_trained_run(config)
    commands.predict(config)
    commands.export(config)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return export_run(tmp_path_factory.mktemp("export"), **{"export.license": "mit"})


@pytest.fixture(scope="module")
def resnet50_run(tmp_path_factory):
    return export_run(tmp_path_factory.mktemp("resnet50"), **{"model.name": "resnet50"})


def predictions(run):
    """Return the first rows of predictions.csv."""
    return pd.read_csv(run / "run" / "predictions.csv", keep_default_na=False)[:3]


def serving_function(run):
    """Return the exported function."""
    return export.deserialize(bytearray((run / "run" / "export" / "serving.bin").read_bytes()))


def chips_of(run, table):
    files = [run / "root" / "train-jpg" / f"{name}.jpg" for name in table["image_name"]]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def example(run, *arguments, **environment):
    command = [sys.executable, "-I", str(ALONE), str(run / "run" / "export" / "example.py")]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd="/", capture_output=True, text=True, timeout=300,
        env={"JAX_PLATFORMS": "cpu", **environment}, check=False,
    )  # fmt: skip


def test_example_alone_gives_what_predict_gives(run, tmp_path):
    table = predictions(run)
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
    ("shape", "dtype", "message"),
    [
        ((1, 32, 2000, 3), np.uint8, "too large: 1024 pixels at most"),
        ((1, 32, 32, 3), np.float32, "expected uint8 and called with float32"),
        ((32, 32, 3), np.uint8, "Rank mismatch"),
    ],
)
def test_wrong_chips_end_with_one_line(run, tmp_path, shape, dtype, message):
    np.save(tmp_path / "chips.npy", np.zeros(shape, dtype))
    assert_one_line(example(run, tmp_path / "chips.npy"), message)


def test_another_version_or_platform_ends_with_one_line(run, tmp_path):
    (tmp_path / "run" / "export").mkdir(parents=True)
    for name in ("example.py", "model.json"):
        shutil.copy(run / "run" / "export" / name, tmp_path / "run" / "export" / name)
    chips = np.zeros((1, 32, 32, 3), np.uint8)
    np.save(tmp_path / "chips.npy", chips)
    elsewhere = export.export(jax.jit(lambda x: x.mean((1, 2))), platforms=("tpu",))(chips)
    later = replace(elsewhere, platforms=("cpu",), calling_convention_version=99)
    for function, message in (
        (elsewhere, "platforms.*tpu.*cpu"),
        (later, "calling convention 99 is too new"),
    ):
        (tmp_path / "run" / "export" / "serving.bin").write_bytes(function.serialize())
        assert_one_line(example(tmp_path, tmp_path / "chips.npy"), message)


def assert_one_line(done, message):
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_function_is_for_every_platform_and_any_chips(run):
    function = serving_function(run)
    assert function.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval) for aval in function.in_avals] == ["uint8[b,h,w,3]"]


@pytest.mark.parametrize("count", [1, 5])
def test_function_gives_what_predict_gives_for_any_number_of_chips(run, count):
    rng = np.random.default_rng(count)
    chips = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    folder = run / f"chips{count}"
    folder.mkdir()
    for i, chip in enumerate(chips):
        Image.fromarray(chip).save(folder / f"chip{i}.png")
    predicted = commands.predict(small_config(run, **{"predict.folder": str(folder)}))
    probabilities = serving_function(run).call(chips)
    np.testing.assert_allclose(probabilities, predicted.iloc[:, 2:], atol=1e-6)


def test_function_resizes_chips_of_another_size(run):
    function = serving_function(run)
    chips = np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), np.uint8)
    resized = np.stack([resize(chip, 32) for chip in chips])
    np.testing.assert_allclose(function.call(chips), function.call(resized), atol=1e-6)


@pytest.mark.slow
def test_resnet50_gives_what_predict_gives(resnet50_run):
    table = predictions(resnet50_run)
    probabilities = serving_function(resnet50_run).call(chips_of(resnet50_run, table))
    np.testing.assert_allclose(probabilities, table.iloc[:, 2:], atol=1e-6)
    assert "## In torch" in (resnet50_run / "run" / "export" / "README.md").read_text()


def test_torch_computes_the_same_from_the_weights(request):
    """Test torchvision's backbone with a head of torch's layers, if both are installed."""
    torch = pytest.importorskip("torch")
    torch.library.register_fake = lambda *_, **__: lambda f: f  # as in test_torchvision.py
    torchvision = pytest.importorskip("torchvision")
    run, nn = request.getfixturevalue("resnet50_run"), torch.nn
    table = predictions(run)
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
    pixels = torch.tensor(render(chips_of(run, table), None, 32)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in IMAGENET)
    with torch.no_grad():
        body = nn.Sequential(*list(resnet.eval().children())[:-2])
        features = body((pixels - mean) / std)
        pooled = torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)
        theirs = torch.sigmoid(head.eval()(pooled)).numpy()
    np.testing.assert_allclose(theirs, table.iloc[:, 2:], atol=1e-5)


def test_weights_are_those_of_the_run(run):
    file = run / "run" / "export" / "model.safetensors"
    config = small_config(run, workdir=str(run / "again"), **{"model.weights": str(file)})
    stage = make_stage(config)
    trained = small_config(run)
    (model,) = inference.load_models(trained, inference.open_runs(trained))
    variables = initial_state(stage, Start()).variables
    jax.tree.map(np.testing.assert_array_equal, variables, model.variables)
    assert load_file(file)["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)


def test_the_hub_gives_back_what_was_exported(run, monkeypatch, tmp_path):
    """Serve the folder as a repository; `hub:` loads backbone, head and normalization."""
    folder = run / "run" / "export"
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.license == "mit"
    assert card.data.library_name == "planet_jax"
    hub = Hub()
    hub.repos["me/run"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = small_config(run, workdir=str(tmp_path / "run"), **{"model.weights": "hub:me/run"})
    with hub.serve() as address:
        use_hub(monkeypatch, address, tmp_path / "hub")
        start = find_start(config)
        variables = initial_state(make_stage(config), start).variables
    assert start.normalization == IMAGENET
    about = json.loads((folder / "config.json").read_text())
    assert about["pretrained_cfg"]["mean"] == list(IMAGENET.mean)
    assert about["label_names"] == json.loads((folder / "model.json").read_text())["classes"]
    trained = small_config(run)
    (model,) = inference.load_models(trained, inference.open_runs(trained))
    jax.tree.map(np.testing.assert_array_equal, variables, model.variables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score.ensemble": ("a",)}, "score.ensemble"),
        ({"score.test_time_augmentation": "fastai"}, "score.test_time_augmentation = fastai"),
        ({"score.decision_rule": "expected_f2"}, "decides by thresholds"),
        ({"score.decision_rule": "per_class", "score.calibrate": True}, "score.calibrate"),
        ({"score.calibrate": True}, r"decisions\.json: does not exist; run evaluate"),
    ],
)
def test_options_that_cannot_be_exported_are_refused(run, options, message):
    before = (run / "run" / "export" / "model.json").read_bytes()
    with pytest.raises(BadInput, match=message):
        commands.export(small_config(run, **options))
    assert (run / "run" / "export" / "model.json").read_bytes() == before
