"""Every option, once: its default, what is allowed, its unit and why; all checked before any work.

`get_config()` makes the ConfigDict that every file in `configs/` starts from.
"""

import difflib
import math
import os
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from planet_jax.runtime.errors import BadInput, did_you_mean

MOST = 10**9  # more is a slip of the hand, and may not fit an array's index or a float


class Option(NamedTuple):
    """A default (which fixes the type), a test of what is allowed, and that test in words."""

    default: Any
    allowed: Callable[[Any], bool]
    rule: str
    meaning: str


def _at_least(low: float, default: Any, meaning: str) -> Option:
    rule = f"at least {low} (and at most {MOST:,})"
    return Option(default, lambda value: low <= value <= MOST, rule, meaning)


def _above(low: float, default: Any, meaning: str) -> Option:
    return Option(default, lambda value: value > low, f"above {low}", meaning)


def _within(low: float, high: float, default: Any, meaning: str) -> Option:
    return Option(default, lambda value: low <= value <= high, f"within {low} to {high}", meaning)


def _choice(default: str, others: tuple[str, ...], meaning: str) -> Option:
    choices = (default, *others)
    return Option(default, lambda value: value in choices, f"one of {', '.join(choices)}", meaning)


def _text(default: str, meaning: str, empty: bool = True) -> Option:
    def allowed(value: str) -> bool:
        return (empty or value.strip() != "") and "\0" not in value  # which no path can hold

    return Option(default, allowed, "a name" if empty else "a name, not empty", meaning)


def _flag(default: bool, meaning: str) -> Option:
    return Option(default, lambda value: True, "True or False", meaning)


def _positive(values: tuple[float, ...], lengths: tuple[int, ...]) -> bool:
    """A tuple of numbers above 0, of a length that has a meaning."""
    numbers = all(isinstance(value, int | float) and 0 < value <= MOST for value in values)
    return len(values) in lengths and numbers


def _momentum(values: tuple[float, ...]) -> bool:
    return _positive(values, (2,)) and all(value < 1 for value in values)


OPTIONS: dict[str, Option] = {
    # The run
    "seed": _within(0, 2**31 - 1, 0, "moves fresh weights, shuffling, augmentation and dropout"),
    "workdir": _text("runs/base", "the run folder: checkpoints, tables, pictures", empty=False),
    "init_from": _text("", "run folder whose latest weights start this stage; '' starts afresh"),
    "checkpoint": _choice("best", ("latest",), "which weights evaluate and predict take"),
    "stages": Option(
        (), lambda value: all(isinstance(s, str) for s in value), "a tuple of config files",
        "configs of a journey's stages, in order"),
    # The data
    "data.source": _choice(
        "folder", ("sample", "kaggle"),
        "folder: what lies in data.root; sample: drawn there, kaggle: fetched there, when missing"),
    "data.root": _text("data/planet", "train_v2.csv and train-jpg/, as unpacked", empty=False),
    "data.cache": _text("data/cache", "where built data sets go", empty=False),
    "data.decoded": _flag(
        True, "keep all pixels on disk (8 GB for 40,479 chips); False decodes each time"),
    "data.size": _at_least(32, 128, "pixels; chips are square to the network"),
    "data.batch_size": _at_least(2, 64, "chips over all devices"),
    "data.valid_fraction": Option(
        0.2, lambda value: 0 < value < 1, "between 0 and 1", "share of the chips that validates"),
    "data.split_seed": _within(0, 2**32 - 1, 42, "which chips those are"),
    "data.subset": _text("", "file of chip names, one a line, to train on alone; '': all"),
    "data.threads": _within(0, 256, 2, "loader threads on each host; 0: none"),
    "data.kaggle_competition": _text(
        "planet-understanding-the-amazon-from-space", "where kaggle downloads from", empty=False),
    "data.kaggle_mirror": _text("", "owner/name of a Kaggle data set that has the archives, or ''"),
    "data.test_chips": _flag(False, "fetch the competition's test chips too (61,191)"),
    # The processes of one run; see hosts.py
    "hosts.coordinator": _text(
        "", "'': this process alone; auto: as the cluster says; or process 0's ADDRESS:PORT"),
    "hosts.count": _at_least(0, 0, "how many processes, if hosts.coordinator is an address"),
    "hosts.index": _at_least(0, 0, "which of them this is, from 0"),
    # The sample that data.source = "sample" draws
    "sample.chips": _at_least(10, 400, "labelled chips"),
    "sample.test_chips": _at_least(0, 40, "chips without labels"),
    "sample.seed": _within(0, 2**31 - 1, 0, "which chips are drawn"),
    # Augmentation: fastai's get_transforms(flip_vert=True, max_lighting=0.1, max_zoom=1.05)
    "augment.on": _flag(True, "False trains on plainly resized chips"),
    "augment.max_degrees": _within(0, 180, 10.0, "degrees of rotation, either way"),
    "augment.max_zoom": _within(1, 10, 1.05, "magnification at most"),
    "augment.max_lighting": Option(
        0.1, lambda value: 0 <= value < 1, "from 0 to below 1", "brightness and contrast"),
    "augment.p": _within(0, 1, 0.75, "chance of rotation, zoom, brightness, contrast, each"),
    # The model
    "model.name": _choice("resnet50", ("tiny",), "the backbone; tiny: for tests and trials"),
    "model.weights": _text(
        "imagenet", "imagenet, random, or a .safetensors file of torchvision's names", empty=False),
    "model.batch_norm": _choice(
        "global", ("device",), "whose chips BatchNorm averages over in training"),
    # Training
    "train.epochs": _at_least(1, 5, "passes over the training chips"),
    "train.precision": _choice(
        "float32", ("bfloat16",), "of the backbone's activations; parameters stay float32"),
    "train.save_every": _at_least(
        0, 500, "steps between checkpoints; 0: any number; the end of an epoch always saves"),
    "train.save_minutes": _at_least(0, 10.0, "minutes between checkpoints; 0: any number"),
    "train.allow_changes": _flag(
        False, "go on with a run though its options or data are others now; config.json notes it"),
    # The optimiser: fastai's fit_one_cycle
    "optim.lr": Option(
        (1e-2, 2e-2), lambda value: _positive(value, (1, 2, 3)), "one to three numbers above 0",
        "peak rate of all groups; two are spaced geometrically from stem to head; or one a group"),
    "optim.freeze": _flag(True, "train only the head and every BatchNorm"),
    "optim.weight_decay": _within(0, 1, 1e-2, "decoupled, on every parameter that trains"),
    "optim.pct_start": _within(0, 1, 0.3, "share of the steps in which the rate rises"),
    "optim.div_factor": _at_least(1, 25.0, "peak rate over first rate"),
    "optim.final_div": _at_least(1, 1e4, "first rate over last rate"),
    "optim.momentum": Option(
        (0.95, 0.85), _momentum, "two numbers between 0 and 1",
        "Adam's beta1 at the low rates and at the peak"),
    # The LR-range test
    "lr_range.steps": _at_least(17, 100, "points of the curve; suggestions drop 15 of them"),
    "lr_range.start_lr": _above(0, 1e-7, "first learning rate"),
    "lr_range.end_lr": _above(0, 10.0, "learning rate that the last step falls just short of"),
    "lr_range.in_journey": _flag(True, "the journey command runs the test before this stage"),
    # Scores and predictions
    "score.threshold": _within(0, 1, 0.2, "probability above which a label is predicted"),
    "score.decision_rule": _choice(
        "threshold", ("per_class", "expected_f2"),
        "how probabilities become labels: score.threshold; fitted thresholds; highest expected F2"),
    "score.calibrate": _flag(False, "Platt-scale each class before labels are decided"),
    "score.weather_rule": _flag(
        False, "exactly one of clear, partly_cloudy, haze, cloudy; nothing else with cloudy"),
    "score.folds": _at_least(2, 5, "what is fitted to chips is scored on others, in so many parts"),
    "score.resamples": _at_least(20, 1000, "of the bootstrap behind each 95% interval"),
    "score.test_time_augmentation": _choice(
        "none", ("dihedral", "fastai"),
        "views of a chip: itself; its eight symmetries; fastai v1's own scheme"),
    "score.average": _choice("probabilities", ("logits",), "what views and runs have averaged"),
    "score.split": _choice("valid", ("train",), "the chips that evaluate scores"),
    "score.ensemble": Option(
        (), lambda value: all(isinstance(run, str) and run.strip() for run in value),
        "a tuple of run folders", "runs to average, each at its own size; (): workdir's alone"),
    "predict.folder": _text("", "images to predict; '': test-jpg of data.root"),
    "predict.submission": _flag(
        False, "write submission.csv too; '' then means test-jpg and test-jpg-additional"),
}  # fmt: skip

# These change no number of a run: they may differ when it goes on. A option of the network, the data
# or the training never stands here.
FREE_OPTIONS = {
    "workdir", "checkpoint", "stages", "data.source", "data.root", "data.cache", "data.decoded",
    "data.threads", "data.kaggle_competition", "data.kaggle_mirror", "data.test_chips",
    "train.save_every", "train.save_minutes", "train.allow_changes", "lr_range.in_journey",
    "lr_range.steps", "lr_range.start_lr", "lr_range.end_lr", "predict.folder",
    "predict.submission",
    "score.decision_rule", "score.calibrate", "score.weather_rule", "score.folds",
    "score.resamples",
    "score.test_time_augmentation", "score.average", "score.split", "score.ensemble",
    "hosts.coordinator", "hosts.count", "hosts.index",
}  # fmt: skip


# Each process of a run on several hosts may have these its own way.
OWN_OPTIONS = {
    "hosts.index", "data.root", "data.cache", "data.decoded", "data.threads", "predict.folder",
}  # fmt: skip


def get_config() -> ConfigDict:
    """The defaults: the notebook's first stage. Setting a name that is no option is an error."""
    config = ConfigDict()
    for name, option in OPTIONS.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[last] = option.default
    return config.lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """`{"data.size": 128, ...}`, sections in one level."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def validate(config: ConfigDict) -> None:
    """Checks every option, and those that only make sense together.

    Raises:
      BadInput: for the first that is unknown, missing, of a wrong type or out of range.
    """
    flat = flatten(config)
    for name, value in flat.items():
        if name not in OPTIONS:
            raise BadInput(f"config.{name} is no option; {did_you_mean(name, OPTIONS)}")
        check(name, value)
    for name in OPTIONS.keys() - flat.keys():
        raise BadInput(f"config.{name} is missing; start the config from configs/base.py")
    _check_hosts(config.hosts)
    if config.lr_range.start_lr >= config.lr_range.end_lr:
        raise BadInput("config.lr_range.start_lr must be below config.lr_range.end_lr")
    if config.init_from and os.path.realpath(config.init_from) == os.path.realpath(config.workdir):
        raise BadInput("config.init_from is config.workdir itself; give the stage its own folder")


def _check_hosts(hosts: ConfigDict) -> None:
    if hosts.coordinator in ("", "auto"):
        if hosts.count or hosts.index:
            raise BadInput(
                "config.hosts.count and config.hosts.index need config.hosts.coordinator: "
                "ADDRESS:PORT of process 0, the same in every process"
            )
        return
    address, _, port = hosts.coordinator.rpartition(":")
    if not (address and port.isdecimal() and 0 < int(port) < 2**16):
        raise BadInput(
            f"config.hosts.coordinator = {hosts.coordinator!r} must be ADDRESS:PORT, auto or ''"
        )
    if hosts.index >= hosts.count:
        raise BadInput(
            f"config.hosts.index = {hosts.index} must be below config.hosts.count = {hosts.count}"
        )


def of_all_hosts(config: ConfigDict) -> dict[str, Any]:
    """The options that every process of a run must have alike."""
    return {
        f"config.{name}": value
        for name, value in flatten(config).items()
        if name not in OWN_OPTIONS
    }


def check(name: str, value: Any) -> None:
    """Checks one known option's value.

    Raises:
      BadInput: it is of another type than the default, or not allowed.
    """
    option = OPTIONS[name]
    kind = type(option.default)
    fits = isinstance(value, kind) or (kind is float and type(value) is int)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"config.{name} = {value!r} must be finite: {option.meaning}")
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise BadInput(f"config.{name} = {value!r} must be {kind.__name__}: {option.meaning}")
    if not option.allowed(value):
        raise BadInput(f"config.{name} = {value!r} must be {option.rule}: {option.meaning}")


def check_flags(arguments: Sequence[str]) -> None:
    """Checks the names in `--config FILE` and `--config.KNOB` before absl tries to use them.

    Raises:
      BadInput: the file is not there, or the option is not known.
    """
    for i, argument in enumerate(arguments):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("--") and not name.startswith(("config", "noconfig")):
            close = difflib.get_close_matches(
                name, ["config", *(f"config.{k}" for k in OPTIONS)], 1
            )
            if close:
                raise BadInput(f"--{name} is no flag; did you mean --{close[0]}?")
        if name == "config" and argument.startswith("-"):
            _find_file(value or next(iter(arguments[i + 1 :]), ""))
        option = name.removeprefix("no").removeprefix("config.")
        if name.startswith(("config.", "noconfig.")) and option not in OPTIONS:
            raise BadInput(
                f"--{name}: config.{option} is no option; {did_you_mean(option, OPTIONS)}"
            )


def load(file: str) -> ConfigDict:
    """The config of `configs/demo.py`, or of `configs/demo.py:stage1`: its get_config("stage1").

    Raises:
      BadInput: the file is not there, or it fails.
    """
    path = _find_file(file)
    argument = file.removeprefix(str(path)).removeprefix(":")
    try:
        made = runpy.run_path(str(path))["get_config"](*[argument] * bool(argument))
    except BadInput:
        raise
    except Exception as error:  # the config file is the user's code
        raise BadInput(f"{file}: failed with {type(error).__name__}: {error}") from error
    validate(made)
    return made


def _find_file(file: str) -> Path:
    """The path in `path` or `path:argument`, which must exist."""
    path, colon, _ = file.rpartition(":")
    path = path if colon and path.endswith(".py") else file
    if not Path(path).is_file():
        folder = Path(path).parent
        others = list(folder.glob("*.py")) if path else []
        hint = did_you_mean(path, map(str, others or Path("configs").glob("*.py")))
        raise BadInput(f"--config={file}: no such file; {hint}")
    return Path(path)
