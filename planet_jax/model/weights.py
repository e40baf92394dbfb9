"""Convert weights with torchvision's names to our variables and back.

A file may also hold the head, named by position in fastai's head (`head.2.weight`, ...).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from planet_jax.model.classifier import Variables, abstract_variables
from planet_jax.model.resnet import NETWORKS
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify

HEAD = {"bn1": "head.2", "linear1": "head.4", "bn2": "head.6", "linear2": "head.8"}
LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
        "var": "running_var"}  # fmt: skip
Flat = dict[tuple[str, ...], Any]
StateDict = dict[str, np.ndarray]


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


def torch_shapes(template: Flat) -> dict[str, tuple[int, ...]]:
    """Return torch's shape of each variable of `template`, by torchvision's name."""
    return {
        torch_name(path): to_torch_axes(path[-1], np.empty(leaf.shape, bool)).shape
        for path, leaf in template.items()
    }


def _convert(state_dict: Mapping[str, np.ndarray], template: Flat, where: str) -> Flat:
    """Fill every leaf of `template` from `state_dict`; every tensor in `state_dict` must be used.

    Raises:
      BadInput: tensors are missing, misshapen, not finite or unknown; the message has their number
        and the first names.
    """
    shapes = torch_shapes(template)
    shared = shapes.keys() & state_dict.keys()
    misshapen = [n for n in shapes if n in shared and state_dict[n].shape != shapes[n]]
    arrays = {n: np.asarray(state_dict[n], np.float32) for n in shared - set(misshapen)}
    problems = {
        "missing": [name for name in shapes if name not in shared],
        "unknown": [name for name in state_dict if name not in shared],
        "misshapen": [f"{n} {list(state_dict[n].shape)}, not {list(shapes[n])}" for n in misshapen],
        "not finite": [n for n in shapes if n in arrays and not np.isfinite(arrays[n]).all()],
        "below 0": [
            n for n in shapes if n in arrays and n.endswith("running_var") and arrays[n].min() < 0
        ],
    }
    if any(problems.values()):
        raise BadInput(f"{where}: these weights do not fit: {_describe(problems, state_dict)}")
    return {
        path: np.ascontiguousarray(_from_torch_axes(path[-1], arrays[torch_name(path)]))
        for path in template
    }


def _describe(problems: Mapping[str, Sequence[str]], state_dict: Mapping[str, np.ndarray]) -> str:
    """Return the number of tensors with each problem, three of their names, and advice."""
    counts = [
        f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {problem} "
        f"({first_few(names)})"
        for problem, names in problems.items()
        if names
    ]
    stem = state_dict.get("conv1.weight")
    if all(name.startswith("head.") for names in problems.values() for name in names):
        counts.append("for other labels set model.head=fresh")
    elif stem is not None and stem.ndim == 4 and stem.shape[1] != 3:
        counts.append(f"their network takes images of {stem.shape[1]} channels, not 3")
    elif problems["missing"] and (network := _network_of(state_dict)):
        counts.append(f"their network is {network}; for other networks set model.name")
    return "; ".join(counts)


def _network_of(state_dict: Mapping[str, np.ndarray]) -> str:
    """Return the network whose backbone has the names and shapes of `state_dict`, or ''."""
    body = {n: array.shape for n, array in state_dict.items() if not n.startswith("head.")}
    return next((name for name in NETWORKS if torch_shapes(_backbone(name)) == body), "")


def _backbone(network: str) -> Flat:
    flat = traverse_util.flatten_dict(abstract_variables(1, network))
    return {path: leaf for path, leaf in flat.items() if path[1] == "backbone"}


def _drop_unused(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    return {
        name: array
        for name, array in state_dict.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }


def _strip_prefix(state_dict: Mapping[str, np.ndarray], where: str) -> StateDict:
    """Remove the prefix of all names, such as `module.` or `encoder_q.`; say what is left out.

    A file of momentum contrast holds two networks; `encoder_q` is the trained one.
    """
    first = "layer1.0.conv1.weight"
    prefixes = [name.removesuffix(first) for name in state_dict if name.endswith(first)]
    if "" in prefixes or not prefixes:
        return dict(state_dict)
    prefix = next((p for p in prefixes if "encoder_q." in p), prefixes[0])
    kept = {n.removeprefix(prefix): a for n, a in state_dict.items() if n.startswith(prefix)}
    kept |= {n: a for n, a in state_dict.items() if n.startswith("head.")}
    others = len(state_dict) - len(kept)
    notify(f"{where}: the prefix {prefix} is removed; {others} tensors without it are ignored")
    return kept


def from_torchvision(
    state_dict: Mapping[str, np.ndarray], network: str = "resnet50"
) -> tuple[dict, dict]:
    """Return the backbone's float32 `(params, batch_stats)` from torchvision's names and shapes.

    `fc.*`, `head.*` and `*.num_batches_tracked` are ignored.

    Raises:
      BadInput: tensors are missing, misshapen, not finite or unknown.
    """
    body = {k: v for k, v in _drop_unused(state_dict).items() if not k.startswith("head.")}
    tree = traverse_util.unflatten_dict(_convert(body, _backbone(network), "state_dict"))
    return tree["params"]["backbone"], tree["batch_stats"]["backbone"]


def to_torchvision(variables: Variables) -> StateDict:
    """Return the weights under torchvision's names, and under `head.2.weight`, ... for the head."""
    flat = traverse_util.flatten_dict(variables)
    return {
        torch_name(path): np.ascontiguousarray(to_torch_axes(path[-1], np.asarray(array)))
        for path, array in flat.items()
    }


def fill(variables: Variables, path: Path, fresh_head: bool = False) -> Variables:
    """Load a safetensors file into the backbone of `variables`, and the head if the file has one.

    With `fresh_head` the file's head is ignored.

    Raises:
      BadInput: the file cannot be read, or the weights belong to another network.
    """
    where = f"model.weights={path}"
    try:
        state_dict = _drop_unused(_strip_prefix(load_file(path), where))
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise BadInput(f"{where}: cannot be read as safetensors ({error})") from None
    flat = traverse_util.flatten_dict(variables)
    if fresh_head:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("head.")}
    has_head = any(name.startswith("head.") for name in state_dict)
    wanted = {k: v for k, v in flat.items() if has_head or k[1] != "head"}
    return traverse_util.unflatten_dict(flat | _convert(state_dict, wanted, where))
