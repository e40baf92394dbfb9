"""Write the export folder: a trained run that works without this package.

Files: model.safetensors (torchvision's names), serving.bin (`jax.export`), model.json (labels,
thresholds, how to run it), config.json and README.md (as the Hugging Face hub expects a model and
its card), example.py, digests.json.
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
from planet_jax.results import fitted_decisions
from planet_jax.results.export.card import model_card
from planet_jax.results.export.function import MAX_SIDE, PLATFORMS, exported, serving_function
from planet_jax.results.export.hub import front_matter, hub_config
from planet_jax.results.inference import TrainedModel
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import atomic_path, seal, write_json
from planet_jax.score.decisions import Decision
from planet_jax.storage.bucket import local_path

FOLDER = "export"
EXAMPLE = Path(__file__).with_name("example.py")
SCORES = ("valid_loss", "accuracy_thresh", "fbeta")


def check(config: ConfigDict) -> None:
    """Check that the config's score options can be exported.

    Raises:
      BadInput: an option cannot be exported; the message names it.
    """
    score, problem = config.score, ""
    if score.ensemble:
        problem = "score.ensemble: an export holds one run; use that run's config"
    elif score.test_time_augmentation == "fastai":
        problem = (
            "score.test_time_augmentation = fastai: the loader makes these views, which is not "
            "exported; set none or dihedral"
        )
    elif score.decision_rule == "expected_f2" or score.weather_rule:
        problem = (
            "score.decision_rule, score.weather_rule: an export decides by thresholds; "
            "set score.decision_rule to threshold or per_class, and score.weather_rule to False"
        )
    elif score.decision_rule == "per_class" and score.calibrate:
        problem = (
            "score.calibrate: per_class thresholds are fitted to uncalibrated probabilities; "
            "set it to False"
        )
    if problem:
        raise BadInput(f"config.{problem}")


def write(
    config: ConfigDict, model: TrainedModel, decision: Decision, fitted_to: dict[str, Any]
) -> Path:
    """Write the folder `export` in config.workdir, replacing an older one; return its path.

    `fitted_to` identifies the model's probabilities, as in `fitted_decisions.write_decision`.

    Raises:
      BadInput: see `check`.
    """
    check(config)
    path = local_path(config.workdir) / FOLDER
    score = model.config.score
    average = score.average if score.test_time_augmentation == "dihedral" else ""
    serve = serving_function(
        model.network, model.variables, model.config.data.size, average, decision.calibration
    )
    function = exported(serve)
    scores = _scores(local_path(config.workdir), fitted_to)
    content = _model_json(model, decision, function.calling_convention_version, scores)
    with atomic_path(path) as folder:
        folder.mkdir()
        normalization = model.metadata.provenance.normalization
        about = {name: json.dumps(values) for name, values in normalization._asdict().items()}
        tensors = weights.to_torchvision(model.variables)
        (folder / "model.safetensors").write_bytes(save(tensors, about))
        (folder / "serving.bin").write_bytes(function.serialize())
        write_json(folder / "model.json", content)
        write_json(folder / "config.json", hub_config(content, config.export.license))
        (folder / "README.md").write_text(
            front_matter(content, config.export.license) + model_card(content)
        )
        shutil.copyfile(EXAMPLE, folder / "example.py")
        seal(folder)
    return path


def _model_json(
    model: TrainedModel,
    decision: Decision,
    calling_convention: int,
    scores: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of model.json: how to use the other files, and their provenance."""
    config, metadata = model.config, model.metadata
    return {
        "classes": list(metadata.classes),
        "thresholds": dict(zip(metadata.classes, decision.thresholds.tolist(), strict=True)),
        "decision": decision.rule,
        "calibrated": decision.calibration is not None,
        "views": config.score.test_time_augmentation,
        "average": config.score.average,
        "input": {
            "chips": "uint8 [b, h, w, 3], RGB",
            "size": config.data.size,
            "most_pixels": MAX_SIDE,
            "mean": list(metadata.provenance.mean),
            "std": list(metadata.provenance.std),
        },
        "serving": {
            "jax": jax.__version__,
            "calling_convention": calling_convention,
            "platforms": list(PLATFORMS),
        },
        "run": {
            "name": local_path(config.workdir).name,
            "network": config.model.name,
            "data": local_path(config.data.root).name,
            "training_chips": metadata.train_chips,
            "validation_chips": metadata.valid_chips,
            "checkpoint": config.checkpoint,
            "step": metadata.step,
            "precision": config.train.precision,
            "planet_jax": importlib.metadata.version("planet_jax"),
            "git_commit": metadata.provenance.git_commit,
        },
        "scores": scores,
    }


def _scores(run: Path, fitted_to: dict[str, Any]) -> dict[str, Any] | None:
    """Return the scores of the last evaluation, or None if it scored other probabilities."""
    try:
        evaluated = json.loads((run / fitted_decisions.FILE).read_text())["fitted_to"]
        metrics = json.loads((run / "metrics.json").read_text())
    except FileNotFoundError:
        return None
    if evaluated != fitted_to:
        return None
    return {
        "chips": metrics["chips"],
        "threshold": metrics["threshold"],
        **{name: [metrics[name], *metrics["intervals"][name]] for name in SCORES},
        "decision": metrics["decision"],
    }
