"""Convert torchvision's weights to our variables and back; read them from the hub or a file.

`timm/resnet50.tv_in1k` on the Hugging Face hub is torchvision's own ResNet50 with torchvision's
names. A file may also hold the head, named by position in fastai's head (`head.2.weight`, ...).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from planet_jax.model.classifier import Variables
from planet_jax.model.resnet import NETWORKS
from planet_jax.runtime.errors import BadInput

HUB_REPO, HUB_FILE = "timm/resnet50.tv_in1k", "model.safetensors"
HEAD = {"bn1": "head.2", "linear1": "head.4", "bn2": "head.6", "linear2": "head.8"}
LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
        "var": "running_var"}  # fmt: skip
Flat = dict[tuple[str, ...], Any]


def torch_name(path: tuple[str, ...]) -> str:
    """Return torchvision's name of a variable.

    ('params', 'backbone', 'layer1_0', 'conv1', 'kernel') → 'layer1.0.conv1.weight'.
    """
    _, part, *modules, leaf = path
    prefix = HEAD[modules[0]] if part == "head" else ".".join(modules).replace("_", ".")
    return f"{prefix}.{LEAF[leaf]}"


def to_torch_axes(leaf: str, array: np.ndarray) -> np.ndarray:
    """Transpose a kernel to torch's axes: HWIO → OIHW, or (in, out) → (out, in)."""
    if leaf == "kernel":
        return array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    return array


def _from_torch_axes(leaf: str, array: np.ndarray) -> np.ndarray:
    if leaf == "kernel":
        return array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return array


def _convert(state_dict: Mapping[str, np.ndarray], template: Flat, where: str) -> Flat:
    """Fill every leaf of `template` from `state_dict`; every tensor in `state_dict` must be used.

    Raises:
      BadInput: tensors are missing, misshapen, not finite or unknown; the message names them.
    """
    wanted = {torch_name(path): path for path in template}
    problems = [f"{name} is missing" for name in wanted if name not in state_dict]
    problems += [f"{name} is not known" for name in state_dict if name not in wanted]
    filled = {}
    for name, path in wanted.items():
        if name not in state_dict:
            continue
        array = np.asarray(state_dict[name], np.float32)
        shape = to_torch_axes(path[-1], np.empty(template[path].shape, bool)).shape
        if array.shape != shape:
            problems.append(f"{name} is {array.shape}, not {shape}")
        elif not np.isfinite(array).all():
            problems.append(f"{name} is not finite")
        else:
            filled[path] = np.ascontiguousarray(_from_torch_axes(path[-1], array))
    if problems:
        in_head = any(problem.startswith("head.") for problem in problems)
        advice = "; for other labels set model.head=fresh" if in_head else ""
        raise BadInput(
            f"{where}: these weights do not fit the network: {'; '.join(problems)}{advice}"
        )
    return filled


def _drop_unused(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: array
        for name, array in state_dict.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }


def from_torchvision(
    state_dict: Mapping[str, np.ndarray], network: str = "resnet50"
) -> tuple[dict, dict]:
    """Return the backbone's float32 `(params, batch_stats)` from torchvision's names and shapes.

    `fc.*`, `head.*` and `*.num_batches_tracked` are ignored.

    Raises:
      BadInput: tensors are missing, misshapen, not finite or unknown; the message names them.
    """
    chips = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    template = jax.eval_shape(
        lambda key, x: NETWORKS[network]().init(key, x, train=False), jax.random.key(0), chips
    )
    flat = traverse_util.flatten_dict({kind: {"backbone": tree} for kind, tree in template.items()})
    body = {k: v for k, v in _drop_unused(state_dict).items() if not k.startswith("head.")}
    tree = traverse_util.unflatten_dict(_convert(body, flat, "state_dict"))
    return tree["params"]["backbone"], tree["batch_stats"]["backbone"]


def to_torchvision(variables: Variables) -> dict[str, np.ndarray]:
    """Return the weights under torchvision's names, and under `head.2.weight`, ... for the head."""
    flat = traverse_util.flatten_dict(variables)
    return {
        torch_name(path): np.ascontiguousarray(to_torch_axes(path[-1], np.asarray(array)))
        for path, array in flat.items()
    }


def fill(variables: Variables, weights: str, fresh_head: bool = False) -> Variables:
    """Load `weights` into the backbone of `variables`, and into the head if the file has one.

    `weights` is "random" (nothing changes), "imagenet" (from the hub) or a `.safetensors` file.
    With `fresh_head` the file's head is ignored.

    Raises:
      BadInput: the hub or the file cannot be read, or the weights belong to another network.
    """
    if weights == "random":
        return variables
    path = _download() if weights == "imagenet" else Path(weights)
    try:
        state_dict = _drop_unused(load_file(path))
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise BadInput(f"model.weights={path}: cannot be read as safetensors ({error})") from None
    flat = traverse_util.flatten_dict(variables)
    if fresh_head:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("head.")}
    has_head = any(name.startswith("head.") for name in state_dict)
    wanted = {k: v for k, v in flat.items() if has_head or k[1] != "head"}
    converted = _convert(state_dict, wanted, f"model.weights={path}")
    return traverse_util.unflatten_dict(flat | converted)


def require(weights: str) -> None:
    """Check that the weights exist, before any other work; download weights from the hub.

    Raises:
      BadInput: `weights` is neither "random" nor a file, or the hub cannot be reached.
    """
    if weights == "imagenet":
        _download()
    elif weights != "random" and not Path(weights).is_file():
        raise BadInput(f"model.weights={weights}: no such file; give random, imagenet or a file")


def _download() -> Path:
    import huggingface_hub  # heavy, and needed only here

    huggingface_hub.logging.set_verbosity_error()  # it logs every retry; our message is enough
    try:
        return Path(huggingface_hub.hf_hub_download(HUB_REPO, HUB_FILE))
    except Exception as error:  # each kind of proxy raises its own types
        raise BadInput(
            f"model.weights=imagenet: {HUB_FILE} of {HUB_REPO} cannot be fetched from its hub "
            f"({type(error).__name__}); copy it to this machine and set model.weights to its path"
        ) from None
