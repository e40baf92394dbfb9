"""The export folder: a trained run, to be used where this package is not.

model.safetensors (torchvision's names), serving.bin (`jax.export`), model.json (vocabulary,
thresholds, what is needed to run it), README.md (the model card), example.py, digests.json.
"""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from safetensors.numpy import save

from planet_jax.model import weights
from planet_jax.model.classifier import Variables
from planet_jax.results import decisions_file
from planet_jax.results.export import function as serving
from planet_jax.runtime import distributed
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import atomic_folder, seal, write_json
from planet_jax.score.decisions import Decision
from planet_jax.train import checkpoint
from planet_jax.train.stage import Stage

FOLDER = "export"
EXAMPLE = Path(__file__).with_name("example.py")


def check(config: ConfigDict) -> None:
    """Refuses what does not go into a function of pixels and a threshold for each class.

    Raises:
      BadInput: naming the option.
    """
    score, wrong = config.score, ""
    if score.ensemble:
        wrong = "score.ensemble: an export is of one run; give its config"
    elif score.test_time_augmentation == "fastai":
        wrong = (
            "score.test_time_augmentation = fastai: these views are made as chips are loaded; "
            "take none or dihedral"
        )
    elif score.decision_rule == "expected_f2" or score.weather_rule:
        wrong = (
            "score.decision_rule, score.weather_rule: an export decides by thresholds; "
            "set score.decision_rule to threshold or per_class, and score.weather_rule to False"
        )
    elif score.decision_rule == "per_class" and score.calibrate:
        wrong = "score.calibrate: thresholds of per_class meet probabilities as they come; unset it"
    if wrong:
        raise BadInput(f"config.{wrong}")


def export(config: ConfigDict, stage: Stage) -> Path:
    """Writes the folder `export` of config.workdir, in place of one that is there.

    Raises:
      BadInput: what `check` refuses; a decision that was not fitted, or to other probabilities.
    """
    check(config)
    path = Path(config.workdir) / FOLDER
    decision, variables = decisions_file.decision(config, [stage]), stage.trained_variables()
    distributed.run_on_main(lambda: _write(path, stage, variables, decision))
    return path


def _write(path: Path, stage: Stage, variables: Variables, decision: Decision) -> None:
    config = stage.config
    average = config.score.average if config.score.test_time_augmentation == "dihedral" else ""
    function = serving.exported(
        serving.serving_function(
            stage.model, variables, config.data.size, average, decision.calibration
        )
    )
    about = _about(stage, decision, function.calling_convention_version)
    with atomic_folder(path) as folder:
        tensors = save(weights.to_torchvision(variables))
        (folder / "model.safetensors").write_bytes(tensors)
        (folder / "serving.bin").write_bytes(function.serialize())
        write_json(folder / "model.json", about)
        (folder / "README.md").write_text(_card(about))
        shutil.copyfile(EXAMPLE, folder / "example.py")
        seal(folder)
        if path.exists():
            shutil.rmtree(path)


def _about(stage: Stage, decision: Decision, calling_convention: int) -> dict[str, Any]:
    """model.json: what a program must know to use the other files, and where they come from."""
    config, classes = stage.config, stage.data.labels.classes
    meta = checkpoint.read_meta(Path(config.workdir), config.checkpoint)
    assert meta is not None  # or its weights had not been read
    return {
        "classes": list(classes),
        "thresholds": dict(zip(classes, decision.thresholds.tolist(), strict=True)),
        "decision": decision.rule,
        "calibrated": decision.calibration is not None,
        "views": config.score.test_time_augmentation,
        "average": config.score.average,
        "input": {
            "chips": "uint8 [b, h, w, 3], RGB",
            "size": config.data.size,
            "most_pixels": serving.MOST,
        },
        "serving": {
            "jax": jax.__version__,
            "calling_convention": calling_convention,
            "platforms": list(serving.PLATFORMS),
        },
        "run": {
            "name": Path(config.workdir).name,
            "data": Path(config.data.root).name,
            "training_chips": len(stage.train_rows),
            "validation_chips": len(stage.valid_rows),
            "checkpoint": config.checkpoint,
            "step": meta["step"],
            "precision": config.train.precision,
            "planet_jax": importlib.metadata.version("planet_jax"),
            "git_commit": meta.get("git_commit"),
        },
        "scores": _scores(stage),
    }


def _scores(stage: Stage) -> dict[str, Any] | None:
    """What `evaluate` found of these very probabilities, or None."""
    run = Path(stage.config.workdir)
    try:
        whose = json.loads((run / decisions_file.FILE).read_text())["fitted_to"]
        found = json.loads((run / "metrics.json").read_text())
    except FileNotFoundError:
        return None
    if whose != json.loads(json.dumps(decisions_file.provenance(stage.config, [stage]))):
        return None
    names = ("valid_loss", "accuracy_thresh", "fbeta")
    return {
        "chips": found["chips"],
        "threshold": found["threshold"],
        **{name: [found[name], *found["intervals"][name]] for name in names},
        "decision": found["decision"],
    }


def _card(about: dict[str, Any]) -> str:
    """README.md: what the model is, how good, how it is called, and how to check it."""
    run, given, made = about["run"], about["input"], about["serving"]
    size, most = given["size"], given["most_pixels"]
    probability = "calibrated (Platt) probability" if about["calibrated"] else "probability"
    views = "the eight dihedral views of a chip, averaged" if about["views"] != "none" else "a chip"
    return f"""# {run["name"]}
A ResNet50 with fastai's concat-pool head that gives each of {len(about["classes"])} labels its
{probability}, independently of the others: {", ".join(about["classes"])}.

- Trained on {run["training_chips"]} chips of `{run["data"]}` ({run["precision"]}); the weights of
  step {run["step"]}, checkpoint `{run["checkpoint"]}`.
- Made by planet_jax {run["planet_jax"]}, git commit {run["git_commit"] or "unknown"}.

## Scores
{_told(about["scores"], run["validation_chips"])}

## Files
| file | content |
| --- | --- |
| `serving.bin` | the function with its weights, serialised by `jax.export` |
| `model.safetensors` | the same weights under torchvision's names and in torch's layout, float32 |
| `model.json` | the labels in the order of the columns, a threshold for each, and the above |
| `example.py` | loads `serving.bin`, predicts a `.npy` file |
| `digests.json` | SHA-256 of every other file; compare with `sha256sum *` |

## The function
`jax.export.deserialize(bytearray(...)).call(chips)` takes {given["chips"]}, with any b and with
h and w up to {most}; it returns float32 [b, classes]. It looks at {views} at {size}x{size} pixels:
chips of another size are resized inside, by the rule and to the bit as in validation (corner to
corner, bilinear in integers; first shrunk by area if more than twice too large), not keeping
their shape unless they are square. A label is predicted when its value is above its threshold in
`model.json` (`{about["decision"]}`).

Written by jax {made["jax"]} with calling convention {made["calling_convention"]} for
{", ".join(made["platforms"])}; it needs jax, numpy and flatbuffers. Later versions of jax read it
for at least six months after that one's release; an earlier one may not. What cannot be read or
run ends `example.py` with one line. On cpu the values are `predict`'s to 1e-6; other platforms
multiply float32 with less precision unless `jax_default_matmul_precision` says `highest`.

    pip install jax=={made["jax"]} numpy flatbuffers
    python example.py chips.npy

## In torch
`torchvision.models.resnet50().load_state_dict(safetensors.torch.load_file("model.safetensors"),
strict=False)` lacks only `fc.*` and leaves over only `head.*`: `head.2` (BatchNorm1d), `head.4`
(Linear), `head.6`, `head.8`, the places in fastai's `nn.Sequential` of concat-pool (maximum first),
flatten, BatchNorm, dropout, linear, ReLU, BatchNorm, dropout, linear. Pixels are divided by 255
and normalised by ImageNet's mean and deviation before.

## Limits
It knows chips like those it was trained on, and labels they had. Another sensor, resolution, season
or region needs scores of its own; the figures above are of chips drawn from the same data.
"""


def _told(scores: dict[str, Any] | None, validating: int) -> str:
    if scores is None:
        return "None: these probabilities were not evaluated before the export."
    threshold, decided = scores["threshold"], scores["decision"]
    names = {
        "valid_loss": "loss (binary cross-entropy)",
        "accuracy_thresh": f"accuracy at threshold {threshold}",
        "fbeta": f"F2 at threshold {threshold}",
    }
    lines = [
        f"| {told} | {scores[name][0]:.4f} | {scores[name][1]:.4f} to {scores[name][2]:.4f} |"
        for name, told in names.items()
    ]
    rule = decided["rule"] + (", calibrated" if decided["calibrate"] else "")
    low, high = decided["interval"]
    lines.append(
        f"| F2 as evaluated by `{rule}` | {decided['fbeta']:.4f} | {low:.4f} to {high:.4f} |"
    )
    head = "| figure | value | 95% (bootstrap) |\n| --- | --- | --- |\n"
    return (
        f"On the {scores['chips']} of {validating} validation chips:\n\n" + head + "\n".join(lines)
    )
