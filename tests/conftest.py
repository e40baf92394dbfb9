"""What the tests share: four virtual devices, the measured reference, small data sets."""

import json
import os
import zlib
from pathlib import Path

# Before jax starts: one machine plays four devices.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=" + os.environ.get(
    "PLANET_JAX_TEST_DEVICES", "4"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from planet_jax.model import weights
from planet_jax.train.stage import abstract_variables

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here")

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "xla"))


@pytest.fixture(scope="session")
def reference():
    """What fastai v1 did (numbers)."""
    return json.loads((SHARED / "reference" / "fastai_v1.json").read_text())


@pytest.fixture(scope="session")
def arrays():
    """What fastai v1 did (arrays)."""
    with np.load(SHARED / "reference" / "fastai_v1.npz") as file:
        return dict(file)


def formula(name, shape):
    """The reference's weights of a state-dict name; see ../shared/reference/README.md."""
    r = np.random.default_rng(zlib.crc32(name.encode()))
    norm = "bn" in name or "downsample.1" in name
    if name.endswith("running_var"):
        array = r.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        array = 0.1 * r.standard_normal(shape)
    elif norm and name.endswith("weight"):
        array = r.uniform(0.2, 0.6, shape)
    elif norm:
        array = 0.1 * r.standard_normal(shape)
    elif len(shape) == 4:
        array = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        array = 0.02 * r.standard_normal(shape)
    return array.astype(np.float32)


@pytest.fixture(scope="session")
def formula_weights():
    """torchvision's state dict of ResNet50 by the formula, `fc` included."""
    flat = traverse_util.flatten_dict(abstract_variables(17))
    state = {
        "fc.weight": formula("fc.weight", (1000, 2048)),
        "fc.bias": formula("fc.bias", (1000,)),
    }
    for path, leaf in flat.items():
        if path[1] == "backbone":
            name = weights.torch_name(path)
            shape = weights.to_torch_axes(path[-1], np.empty(leaf.shape, bool)).shape
            state[name] = formula(name, shape)
    return state


def write_chips(root, labels, size=64, seed=0):
    """A folder in the competition's layout: noise whose mean colour tells the first label."""
    (root / "train-jpg").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = ["image_name,tags"]
    for i, tags in enumerate(labels):
        base = 40 + 170 * (zlib.crc32(tags.split()[0].encode()) % 2) if tags.strip() else 128
        pixels = rng.integers(0, 40, (size, size, 3)) + base
        Image.fromarray(pixels.astype(np.uint8)).save(root / "train-jpg" / f"chip{i}.jpg")
        lines.append(f"chip{i},{tags}")
    (root / "train_v2.csv").write_text("\n".join(lines) + "\n")
    return root
