"""Find the file of weights that model.weights names, and the normalization of its network.

Weights come from a safetensors file, or from `model.safetensors` in a repository of the Hugging
Face hub. "imagenet" is torchvision's first ImageNet weights, which timm keeps in repositories.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from planet_jax.config import OPTIONS
from planet_jax.conflicts import HUB
from planet_jax.model.classifier import Normalization
from planet_jax.runtime.errors import BadInput

TORCHVISION = "hub:timm/{network}.tv_in1k"  # the weights "imagenet"
FILE, CONFIG = "model.safetensors", "config.json"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")


def locate(weights: str, network: str) -> Path | None:
    """Return the file of the weights, downloaded from the hub if necessary; None for "random".

    Raises:
      BadInput: there is no such file, it is a pickle, the hub has no such weights or cannot be
        reached, or the repository's config.json names another network.
    """
    if weights == "random":
        return None
    if weights == "imagenet":
        weights = TORCHVISION.format(network=network)
    if match := HUB.fullmatch(weights):
        return _from_hub(match["repo"], match["revision"], network)
    path = Path(weights)
    if not path.is_file():
        raise BadInput(
            f"model.weights={weights}: no such file; give random, imagenet, hub:OWNER/NAME or a "
            "safetensors file"
        )
    if path.suffix.lower() in PICKLES:
        raise BadInput(f"model.weights={path} is a pickle, which can run code; {conversion(path)}")
    return path


def conversion(path: Path) -> str:
    """Return the command that makes a safetensors file of a pickle of torch's."""
    script = (
        "import sys, torch, safetensors.torch as s; _, old, new = sys.argv; "
        "d = torch.load(old, map_location='cpu', weights_only=True); "
        "d = d.get('state_dict', d.get('model', d)); "
        "s.save_file({k: v.contiguous() for k, v in d.items()}, new)"
    )
    files = shlex.join([str(path), str(path.with_suffix(".safetensors"))])
    return f'convert it where torch is installed: python -c "{script}" {files}'


def normalization(path: Path) -> Normalization | None:
    """Return the mean and std by which a file's network normalizes, or None if none are given.

    They are in the metadata of the file, or in timm's config.json beside it. The bounds are those
    of the options model.mean and model.std.

    Raises:
      BadInput: the file or config.json cannot be read, or a number is missing or out of bounds.
    """
    where = path
    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
        stated = {name: json.loads(about[name]) for name in Normalization._fields if name in about}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as safetensors ({str(error)[:120]})") from None
    if not stated:
        where = path.with_name(CONFIG)
        config = _timm_config(where)
        inner = config.get("pretrained_cfg")
        stated = inner if isinstance(inner, dict) else config  # an older layout has no inner one
    if not stated.keys() & set(Normalization._fields):
        return None
    found = []
    for name in Normalization._fields:
        option, value = OPTIONS[f"model.{name}"], stated.get(name)
        numbers = tuple(value) if isinstance(value, list) else ()
        if not numbers or not option.accepts(numbers):
            raise BadInput(
                f"{where}: {name} = {str(value)[:60]} must be {option.rule}; set model.mean and "
                "model.std"
            )
        found.append(numbers)
    return Normalization(*found)


def _timm_config(path: Path) -> dict[str, Any]:
    """Return a repository's config.json, or {} if there is none.

    Raises:
      BadInput: it is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({str(error)[:120]})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: is not a JSON object")
    return content


def _from_hub(repo: str, revision: str | None, network: str) -> Path:
    """Download a repository's config.json and weights to the hub's cache; return the weights.

    The hub's client keeps the cache, shows progress, resumes a broken transfer, reads the user's
    token, and works from the cache alone if HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import errors, hf_hub_download, logging  # heavy, and needed only here

    logging.set_verbosity_error()  # it logs every retry; our message is enough
    name = f"{repo}@{revision}" if revision else repo
    unreachable: Exception | None = None
    config = {}
    try:
        try:
            config = _timm_config(Path(hf_hub_download(repo, CONFIG, revision=revision)))
        except errors.LocalEntryNotFoundError as error:  # but the cache may have the weights
            unreachable = error
        except errors.EntryNotFoundError:  # not every repository has one
            pass
        named = config.get("architecture") or config.get("architectures") or network
        named = named[0] if isinstance(named, list) else named
        if named != network:
            raise BadInput(f"hub:{name} is a {str(named)[:60]}, but model.name is {network}")
        offline = unreachable is not None
        return Path(hf_hub_download(repo, FILE, revision=revision, local_files_only=offline))
    except BadInput:
        raise
    except errors.GatedRepoError:
        advice = f"accept its terms on https://huggingface.co/{repo}, and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        advice = "there is no such repository; if it is private, set HF_TOKEN"
    except errors.RevisionNotFoundError:
        advice = f"it has no revision {revision}"
    except errors.LocalEntryNotFoundError as error:
        advice = _copy_it(unreachable or error)
    except errors.EntryNotFoundError:
        advice = f"it has no {FILE}; download its weights; {conversion(Path('weights.pth'))}"
    except Exception as error:  # each kind of proxy raises its own types
        advice = _copy_it(error)
    raise BadInput(f"model.weights: hub:{name} cannot be fetched: {advice}")


def _copy_it(error: Exception) -> str:
    """Return the advice for a hub that cannot be reached, with the first cause."""
    cause: BaseException = error
    while below := cause.__cause__ or cause.__context__:
        cause = below
    return (
        f"{type(error).__name__} ({str(cause)[:120]}); copy {FILE} and {CONFIG} to this machine, "
        "and set model.weights to the path"
    )
