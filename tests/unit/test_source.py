"""Test the sources of weights: files and the hub, by the hub's own client and wire."""

import json
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save, save_file

from planet_jax.model import source
from planet_jax.model.classifier import IMAGENET, Normalization
from planet_jax.runtime.errors import BadInput
from tests.hub_server import COMMIT, TOKEN, Hub, use_hub

HALF = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ABOUT = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
WEIGHTS = save({"conv1.weight": np.zeros(6_000_000, np.float32)})  # the client's chunks are 10 MB


def timm_config(architecture="resnet50", **pretrained):
    return json.dumps({"architecture": architecture, "pretrained_cfg": pretrained}).encode()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with three repositories, and an empty cache."""
    hub = Hub()
    stated = timm_config(mean=[0.5] * 3, std=[0.25] * 3)
    hub.repos = {
        "me/run": {"config.json": stated, "model.safetensors": WEIGHTS},
        "timm/resnet18.tv_in1k": {
            "config.json": timm_config("resnet18"), "model.safetensors": WEIGHTS
        },
        "me/pickle": {"pytorch_model.bin": b"pickle"},
    }  # fmt: skip
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub.serve() as address:
        use_hub(monkeypatch, address, tmp_path / "hub")
        yield hub
    huggingface_hub.close_session()


def test_a_repository_is_fetched_once(hub):
    path = source.locate("hub:me/run", "resnet50")
    assert path.read_bytes() == WEIGHTS
    assert source.normalization(path) == HALF
    fetched = [path for method, path, _ in hub.log if method == "GET"]
    assert source.locate(f"hub:me/run@{COMMIT}", "resnet50") == path
    assert source.locate("hub:me/run@v1", "resnet50") == path
    assert [path for method, path, _ in hub.log if method == "GET"] == fetched
    assert source.normalization(source.locate("imagenet", "resnet18")) is None


def test_the_cache_serves_without_the_hub(hub, monkeypatch):
    path = source.locate("hub:me/run", "resnet50")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.log)
    assert source.locate("hub:me/run", "resnet50") == path
    with pytest.raises(BadInput, match=r"hub:timm/resnet50\.tv_in1k .*; copy model"):
        source.locate("imagenet", "resnet50")
    assert len(hub.log) == before


def test_a_broken_transfer_goes_on_where_it_broke(hub):
    hub.broken = 1
    assert source.locate("hub:me/run", "resnet50").read_bytes() == WEIGHTS
    transfers = [
        part for method, path, part in hub.log if (method, path[:9]) == ("GET", "/storage/")
    ]
    assert transfers == ["", "bytes=10485760-"]


def test_a_private_repository_needs_the_token(hub, monkeypatch):
    hub.private.add("me/run")
    with pytest.raises(BadInput, match=r"hub:me/run cannot be fetched: .* set HF_TOKEN"):
        source.locate("hub:me/run", "resnet50")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert source.locate("hub:me/run", "resnet50").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("hub:me/absent", "there is no such repository"),
        ("hub:me/run@v9", "it has no revision v9"),
        ("hub:me/pickle", r"it has no model\.safetensors; .* convert it .* torch\.load"),
        ("hub:me/gated", "accept its terms on https://huggingface.co/me/gated"),
        ("hub:timm/resnet18.tv_in1k", "is a resnet18, but model.name is resnet50"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, weights, message):
    hub.repos["me/gated"] = hub.repos["me/run"]
    hub.gated.add("me/gated")
    with pytest.raises(BadInput, match=message):
        source.locate(weights, "resnet50")


def test_without_the_hub_the_way_out_is_named(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HTTP_PROXY", constants.ENDPOINT)
    monkeypatch.setenv("NO_PROXY", "")
    huggingface_hub.close_session()
    use_hub(monkeypatch, "http://hub.example", tmp_path / "other")
    with pytest.raises(BadInput, match=r"hub:me/run .*407.* copy model\.safetensors"):
        source.locate("hub:me/run", "resnet50")


def test_a_file_states_its_normalization_or_none(tmp_path):
    tensors = {"a": np.zeros(2, np.float32)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert source.normalization(source.locate(str(path), "resnet50")) is None
    save_file(tensors, path, ABOUT)
    assert source.normalization(path) == HALF
    beside = path.with_name("config.json")
    beside.write_bytes(timm_config(mean=IMAGENET.mean, std=IMAGENET.std))
    assert source.normalization(path) == HALF  # the file's own comes first
    save_file(tensors, path)
    assert source.normalization(path) == IMAGENET
    deep = "[" * 100_000
    for text in ("", "[1]", '{"mean": ', deep, '{"mean": [0.5, 0.5, 0.5]}'):
        beside.write_text(text)
        with pytest.raises(BadInput, match=r"config\.json: "):
            source.normalization(path)
    for mean in (
        [0.5],
        "x",
        [True] * 3,
        [],
        [0.5, 0.5, None],
        [np.inf] * 3,
        [10**400, 0, 0],
        [123.0, 116, 103],
    ):
        beside.write_bytes(timm_config(mean=mean, std=[1, 1, 1]))
        with pytest.raises(
            BadInput, match=r"config\.json: mean = .* must be a tuple .* set model\.mean"
        ):
            source.normalization(path)
    assert source.locate("random", "tiny") is None


def timm_content(architecture, mean, std, first_conv="conv1", **pretrained):
    """Return what timm writes to config.json, as read in repositories of the hub."""
    pretrained |= {"input_size": [3, 224, 224], "mean": mean, "std": std, "first_conv": first_conv}
    return {"architecture": architecture, "num_classes": 1000, "pretrained_cfg": pretrained}


RGB = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
GRAY = {"mean": [0.5] * 3, "std": [0.5] * 3}
TIMM = {
    "timm/resnet50.tv_in1k": timm_content("resnet50", **RGB, license="bsd-3-clause"),
    "timm/resnet18.fb_swsl_ig1b_ft_in1k": timm_content("resnet18", **RGB),
    "timm/resnet34.ra4_e3600_r224_in1k": timm_content("resnet34", **GRAY),
    "timm/resnet101.tv2_in1k": timm_content("resnet101", **RGB),
    # an older layout, without pretrained_cfg
    "nateraw/timm-resnet50-beans": {"architecture": "resnet50", "num_classes": 1000, **RGB},
    "timm/resnet50d.ra2_in1k": timm_content("resnet50d", **RGB, first_conv="conv1.0"),
    "timm/resnetv2_50x1_bit.goog_in21k": timm_content("resnetv2_50x1_bit", **GRAY),
}


@pytest.mark.parametrize("repo", TIMM)
def test_timms_repositories_are_understood(hub, repo):
    content = TIMM[repo]
    hub.repos[repo] = {
        "config.json": json.dumps(content).encode(), "model.safetensors": WEIGHTS
    }  # fmt: skip
    name = content["architecture"]
    if name in ("resnet50d", "resnetv2_50x1_bit"):
        with pytest.raises(BadInput, match=f"is a {name}, but model.name is resnet50"):
            source.locate(f"hub:{repo}", "resnet50")
        return
    expected = Normalization((0.5,) * 3, (0.5,) * 3) if "ra4" in repo else IMAGENET
    assert source.normalization(source.locate(f"hub:{repo}", name)) == expected


def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path):
    """Run the command with a fake torch, which the tests do not have."""
    pickle = tmp_path / "$a 'checkpoint.pth"
    pickle.write_bytes(b"\x80\x02")
    with pytest.raises(BadInput, match=r"is a pickle, .* python -c ") as caught:
        source.locate(str(pickle), "resnet50")
    command = str(caught.value).partition("is installed: python")[2]
    (tmp_path / "torch.py").write_text(
        "class T(str):\n  def contiguous(self): return self\n"
        "def load(path, map_location, weights_only):\n  assert weights_only\n"
        "  return {'state_dict': {path: T('tensor')}}\n"
    )
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").touch()
    (tmp_path / "safetensors" / "torch.py").write_text(
        "def save_file(tensors, path):\n  print(tensors, path)\n"
    )
    done = subprocess.run(
        sys.executable + command, shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    expected = f"{ {str(pickle): 'tensor'} } {pickle.with_suffix('.safetensors')}\n"
    assert done.stdout == expected, done.stderr
    with pytest.raises(BadInput, match="no such file; give random, imagenet, hub:OWNER/NAME"):
        source.locate(str(tmp_path / "absent.safetensors"), "resnet50")
