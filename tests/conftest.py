"""Shared fixtures: four virtual devices, the measured reference, a finished run, a fake Kaggle."""

import importlib
import json
import os

# jax reads these when it starts.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import threading
import time
import types

import fsspec
import jax
import numpy as np
import pytest
from flax import traverse_util

from planet_jax import backend, commands
from planet_jax.model import classifier, weights
from planet_jax.train import mirror
from tests.bucket_server import serve
from tests.kaggle_server import Kaggle
from tests.support import ROOT, SHARED, formula, small_config

backend.use_eigen_convolutions()  # as the program does
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "xla"))


@pytest.fixture(scope="session")
def reference():
    """Return the numbers measured in fastai v1."""
    return json.loads((SHARED / "reference" / "fastai_v1.json").read_text())


@pytest.fixture(scope="session")
def arrays():
    """Return the arrays measured in fastai v1."""
    with np.load(SHARED / "reference" / "fastai_v1.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def resnet50_shapes():
    """Return ResNet50's variable shapes for 17 classes; compiling its init takes a minute."""
    return classifier.abstract_variables(17)


@pytest.fixture(scope="session")
def formula_weights(resnet50_shapes):
    """Return torchvision's state dict of ResNet50, including `fc`, with the formula's values."""
    shapes = weights.torch_shapes(traverse_util.flatten_dict(resnet50_shapes))
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("head.")}
    shapes |= {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    return {name: formula(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train the tiny network; return the run's parent folder and config."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(folder)
    commands.train(config)
    return folder, config


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """Start the fake server and set credentials for it."""
    import kagglesdk.kaggle_env  # a slow import, and few tests need it

    server = Kaggle()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    prod = kagglesdk.kaggle_env.KaggleEnv.PROD
    monkeypatch.setitem(kagglesdk.kaggle_env._env_to_endpoint, prod, server.url)
    # Not `import ... as`: kaggle.api is also the name of an object.
    package = importlib.import_module("kaggle.api.kaggle_api_extended")
    monkeypatch.setattr(package.KaggleApi, "config", str(tmp_path / "home" / "kaggle.json"))
    quick = types.SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr(package, "time", quick)  # the package sleeps at least 2 s between attempts
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(request, monkeypatch, tmp_path):
    """Serve an empty store; yield its proxy, with the URL of a run as `url`."""
    kind = getattr(request, "param", "s3")
    with serve(kind) as (proxy, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(mirror, "FIRST_WAIT", 0.05)
        fsspec.get_filesystem_class(kind).clear_instance_cache()
        proxy.url = f"{kind}://bucket/{tmp_path.name}/runs/one"
        yield proxy
        proxy.fault = ""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that starts on a new machine, or one seen before: another cache."""

    def start(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machines" / name))

    start("first")
    return start
