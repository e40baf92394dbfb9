"""List every option: default, allowed values, unit, meaning, and whether a resume may change it.

`get_config()` returns the defaults as a ConfigDict. Every file in `configs/` starts from it.
"""

from typing import Any

from ml_collections import ConfigDict

from planet_jax import conflicts
from planet_jax.option import Option
from planet_jax.runtime.errors import BadInput, did_you_mean

OPTIONS: dict[str, Option] = {
    # ---- The run ----
    "seed": Option(
        0, "seed of initial weights, order, augmentation, dropout, folds and bootstrap",
        low=0, high=2**31 - 1),
    "workdir": Option(
        "runs/base", "the run folder: checkpoints, tables, pictures; a path or gs://, s3://, ...",
        required=True, on_resume="free", path=True, url=True),
    "init_from": Option(
        "", "run folder whose latest weights start this stage; '': model.weights",
        path=True, url=True),
    "checkpoint": Option(
        "best", "weights that evaluate, predict, report and export use: the best by F2, the "
        "latest, or ema: the moving averages (optim.ema_decay) after the latest epoch",
        choices=("best", "latest", "ema"), on_resume="free"),
    "stages": Option(
        (), "config files of a journey's stages, in order",
        item_type=str, required=True, on_resume="free", path=True),
    "journey.folds": Option(
        0, "train the stages once per fold, with data.folds of this number; workdir gets the "
        "results of their average, scored out of fold; 0: one split",
        low=0, high=1000, unit="folds", on_resume="free"),
    "journey.seeds": Option(
        (), "train the stages with each of these seeds, and average them; (): the stages' seed",
        item_type=int, low=0, high=2**31 - 1, on_resume="free"),
    "journey.members": Option(
        (), "the stages, as in config.stages, that are averaged; (): the last",
        item_type=str, required=True, on_resume="free", path=True),

    # ---- Data ----
    "data.source": Option(
        "folder", "folder: data.root must exist; sample: draw it if missing; kaggle: download it",
        choices=("folder", "sample", "kaggle"), on_resume="free"),
    "data.root": Option(
        "data/planet", "folder with train_v2.csv and train-jpg/, as the competition unpacks them; "
        "also a URL of a folder, .zip or .tar.gz",
        required=True, on_resume="free", per_process=True, path=True, url=True),
    "data.cache": Option(
        "data/cache", "folder for the data sets built from data.root",
        required=True, on_resume="free", per_process=True, path=True),
    "data.decoded": Option(
        True, "keep decoded pixels on disk (8 GB for 40,479 chips); False decodes in every epoch",
        on_resume="free", per_process=True),
    "data.size": Option(
        128, "side of the square chips that enter the network; ResNet50 divides it by 32",
        low=32, unit="pixels", per_member=True),
    "data.batch_size": Option(
        64, "size of the batch over all devices; BatchNorm needs two chips", low=2, unit="chips"),
    "data.valid_fraction": Option(
        0.2, "share of the chips that is kept for validation", above=0, below=1),
    "data.split_seed": Option(
        42, "chooses the validation chips (numpy's seed range)", low=0, high=2**32 - 1),
    "data.subset": Option(
        "", "file of chip names, one per line: train on these alone; '': on all", path=True),
    "data.threads": Option(
        2, "loader threads of each process; 0: load in the main thread",
        low=0, high=256, unit="threads", on_resume="free", per_process=True),
    "data.kaggle_competition": Option(
        "planet-understanding-the-amazon-from-space", "Kaggle competition to download",
        required=True, on_resume="free"),
    "data.kaggle_mirror": Option(
        "", "Kaggle data set OWNER/NAME that holds the chips' archives, or ''", on_resume="free"),
    "data.test_chips": Option(
        False, "download the competition's 61,191 test chips too", on_resume="free"),

    # ---- Labels and chips in data.root; docs/data.md has an example of each layout ----
    "data.label_file": Option(
        "train_v2.csv", "table of labels in data.root; '': data.chip_folder has a folder per label",
        on_resume="free", path=True),
    "data.chip_folder": Option(
        "train-jpg", "folder of the chips in data.root; .: data.root itself",
        required=True, on_resume="free", path=True),
    "data.delimiter": Option(
        ",", "character between the label file's columns; tab: a tab", on_resume="free"),
    "data.name_column": Option(
        "image_name", "column of the chips' names, with or without an ending",
        required=True, on_resume="free"),
    "data.label_columns": Option(
        (), "columns of labels; (): tags, or with one_hot all columns that have no other use",
        item_type=str, required=True, on_resume="free"),
    "data.label_format": Option(
        "text", "text; list: ['a', 'b'] of Python or JSON; one_hot: a column of 0 and 1 per label",
        choices=("text", "list", "one_hot"), on_resume="free"),
    "data.label_delimiter": Option(
        " ", "between the labels in a column of text; '': each text is one label",
        on_resume="free"),

    # ---- Choice of the validation chips, instead of a random data.valid_fraction ----
    "data.valid_file": Option(
        "", "file of the names of the chips that validate, as data.subset", path=True),
    "data.valid_column": Option(
        "", "column of the label file: train or 0, valid or 1; a chip of test does neither"),
    "data.valid_folder": Option(
        "", "folder in data.root that has a folder per label, of the chips that validate",
        path=True),
    "data.folds": Option(
        0, "divide the chips into folds with equal shares of each label; one validates; 0: off",
        low=0, high=1000, unit="folds"),
    "data.fold": Option(0, "the fold that validates, from 0", low=0),
    "data.group_column": Option(
        "", "column of the label file: chips with the same value all train or all validate"),
    "data.group_pattern": Option(
        "", "regular expression on the name: chips with the same match (of its first group, if it "
        "has one) all train or all validate"),

    # ---- Processes of one run (runtime/distributed.py) ----
    "hosts.coordinator": Option(
        "", "'': one process; auto: from the cluster's environment; or ADDRESS:PORT of process 0",
        on_resume="free"),
    "hosts.count": Option(
        0, "number of processes, where hosts.coordinator is an address",
        low=0, unit="processes", on_resume="free"),
    "hosts.index": Option(
        0, "number of this process, from 0", low=0, on_resume="free", per_process=True),

    # ---- The chips that data.source = "sample" draws ----
    "sample.chips": Option(400, "labeled chips", low=10, unit="chips"),
    "sample.test_chips": Option(40, "unlabeled chips", low=0, unit="chips"),
    "sample.seed": Option(0, "chooses the chips that are drawn", low=0, high=2**31 - 1),

    # ---- Augmentation: fastai's get_transforms(flip_vert=True, max_zoom=1.05) ----
    "augment.on": Option(True, "False trains on resized chips without augmentation"),
    "augment.max_degrees": Option(
        10.0, "largest rotation in either direction", low=0, high=180, unit="degrees"),
    "augment.max_zoom": Option(1.05, "largest magnification", low=1, high=10),
    "augment.max_lighting": Option(
        0.1, "largest change of brightness and contrast", low=0, below=1),
    "augment.p": Option(
        0.75, "probability of each of rotation, zoom, brightness and contrast", low=0, high=1),

    # ---- Model ----
    "model.name": Option(
        "resnet50", "tiny has one narrow block per stage: for tests and trials, not pretrained",
        choices=("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "tiny"),
        per_member=True),
    "model.weights": Option(
        "imagenet",
        "imagenet, random, hub:OWNER/NAME[@REVISION] on the Hugging Face hub, or a .safetensors "
        "file; tensors have torchvision's names",
        required=True, path=True),
    "model.mean": Option(
        (), "mean of red, green and blue, 0 to 1, by which to normalize; (): as the weights state",
        low=0, high=1, lengths=(0, 3)),
    "model.std": Option(
        (), "standard deviation of red, green and blue; set both or neither",
        low=1e-3, high=10, lengths=(0, 3)),
    "model.head": Option(
        "keep", "fresh: take only the backbone of init_from or model.weights, for other labels",
        choices=("keep", "fresh")),
    "model.batch_norm": Option(
        "global", "training statistics: global: of the whole batch; device: of each device's chips",
        choices=("global", "device"), per_member=True),
    "model.exclusive": Option(
        (), "labels that exclude each other: their probabilities are a softmax",
        item_type=str, required=True),

    # ---- Training ----
    "train.epochs": Option(5, "passes over the training chips", low=1, unit="epochs"),
    "train.patience": Option(
        0, "end after this many consecutive epochs without a better F2; 0: never early",
        low=0, unit="epochs"),
    "train.precision": Option(
        "float32", "dtype of the backbone's activations; parameters are always float32",
        choices=("float32", "bfloat16"), per_member=True),
    "train.save_every": Option(
        500, "steps between checkpoints; 0: not by steps; the end of an epoch always saves",
        low=0, unit="steps", on_resume="free"),
    "train.save_minutes": Option(
        10.0, "time between checkpoints; 0: not by time", low=0, unit="minutes", on_resume="free"),
    "train.grace_seconds": Option(
        25.0, "time from SIGTERM to the end: to save, and to upload to a bucket",
        low=0, unit="seconds", on_resume="free"),
    "train.upload_minutes": Option(
        15.0, "longest wait for a bucket at the end of a run", low=0, unit="minutes",
        on_resume="free"),
    "train.allow_changes": Option(
        False, "resume although other options or data changed; config.json records what changed",
        on_resume="free"),

    # ---- Trackers (train/trackers.py) ----
    "track.to": Option(
        (), "also send rows and pictures to tensorboard, wandb, or your own MODULE:NAME",
        item_type=str, required=True, on_resume="free"),

    # ---- Optimizer: fastai's fit_one_cycle ----
    "optim.lr": Option(
        (1e-2, 2e-2),
        "peak rates: 1 for all groups, 2 for a geometric series from stem to head, or 3",
        above=0, lengths=(1, 2, 3)),
    "optim.freeze": Option(True, "train only the head and every BatchNorm"),
    "optim.weight_decay": Option(
        1e-2, "decoupled (AdamW), on every trained parameter", low=0, high=1),
    "optim.pct_start": Option(
        0.3, "share of the steps in which the rate rises", low=0, high=1),
    "optim.div_factor": Option(25.0, "peak rate / first rate", low=1),
    "optim.final_div": Option(1e4, "first rate / last rate", low=1),
    "optim.momentum": Option(
        (0.95, 0.85), "Adam's beta1 at the lowest and at the peak rate",
        above=0, below=1, lengths=(2,)),
    "optim.cycles": Option(
        1, "number of one-cycles, each in an equal share of the steps; 2: one restart",
        low=1, unit="cycles"),
    "optim.accumulate": Option(
        1, "parts of each device's chips, taken one after the other to save memory; BatchNorm uses "
        "the statistics of each part", low=1, unit="parts"),
    "optim.clip_norm": Option(
        0.0, "largest norm of all gradients together; 0: not limited", low=0),
    "optim.ema_decay": Option(
        0.0, "keep moving averages of the weights, with this decay per step, for checkpoint=ema; "
        "0: off", low=0, below=1),

    # ---- Loss: the notebook's binary cross-entropy, and what may be added ----
    "loss.label_smoothing": Option(
        0.0, "share of each target that moves to 1/2, or to all labels of model.exclusive",
        low=0, below=1),
    "loss.gamma": Option(
        (0.0, 0.0),
        "focusing exponents of present and absent labels: (2, 2) is the focal loss, (0, 4) with "
        "loss.margin=0.05 the asymmetric loss", low=0, high=10, lengths=(2,)),
    "loss.margin": Option(
        0.0, "absent labels below this probability have no loss", low=0, below=1),
    "loss.soft_f2": Option(
        0.0, "weight of an added 1 - F2, with probabilities in place of labels", low=0),
    "loss.balance": Option(
        0.0, "multiplies a present label's loss by (absent / present chips) to this power",
        low=0, high=1),

    # ---- Learning-rate range test ----
    "lr_range.steps": Option(
        100, "points of the curve; the suggestions leave out 15 of them",
        low=17, unit="steps", on_resume="free"),
    "lr_range.start_lr": Option(1e-7, "first learning rate", above=0, on_resume="free"),
    "lr_range.end_lr": Option(
        10.0, "exclusive end of the learning rates; the last step's rate is below it",
        above=0, on_resume="free"),
    "lr_range.in_journey": Option(
        True, "the journey command runs the test before this stage", on_resume="free"),

    # ---- Scores and predictions ----
    "score.threshold": Option(
        0.2, "a label is predicted where its probability is above this", low=0, high=1),
    "score.decision_rule": Option(
        "threshold",
        "labels above score.threshold, above thresholds fitted per class, or of best expected F2",
        choices=("threshold", "per_class", "expected_f2"), on_resume="free"),
    "score.calibrate": Option(
        False, "apply Platt scaling to each class before the decision", on_resume="free"),
    "score.weather_rule": Option(
        False, "keep exactly one weather label per chip, and no other label beside cloudy",
        on_resume="free"),
    "score.folds": Option(
        5, "cross-validation folds; each is scored with a decision fitted to the others",
        low=2, unit="folds", on_resume="free"),
    "score.resamples": Option(
        1000, "bootstrap resamples of each 95% interval",
        low=20, unit="resamples", on_resume="free"),
    "score.test_time_augmentation": Option(
        "none", "views to average: none: the chip; dihedral: its 8 symmetries; fastai: v1's scheme",
        choices=("none", "dihedral", "fastai"), on_resume="free"),
    "score.average": Option(
        "probabilities", "what is averaged over views and ensemble members",
        choices=("probabilities", "logits"), on_resume="free"),
    "score.split": Option(
        "valid", "chips that evaluate scores", choices=("valid", "train"), on_resume="free"),
    "score.ensemble": Option(
        (), "run folders to average, each at its own size; (): workdir alone",
        item_type=str, required=True, on_resume="free", path=True, url=True),
    "score.explain": Option(
        0, "evaluate draws maps of this many worst chips and the embeddings of all, and finds "
        "validation chips that repeat a training chip; 0: off",
        low=0, high=100, unit="chips", on_resume="free"),
    "predict.folder": Option(
        "", "folder of images, or one image, to predict; '': test-jpg of data.root",
        on_resume="free", per_process=True, path=True, url=True),
    "predict.subfolders": Option(
        False, "predict the images in sub-folders of predict.folder too", on_resume="free"),
    "predict.strict": Option(
        False, "refuse an image that cannot be read; False skips it and names it in skipped.csv",
        on_resume="free"),
    "predict.submission": Option(
        False, "write submission.csv too; predict.folder = '' then adds test-jpg-additional",
        on_resume="free"),
    "export.license": Option(
        "unknown", "license of exported weights, as the Hugging Face hub names it: apache-2.0, ...",
        required=True, on_resume="free"),
}  # fmt: skip

RENAMED = {
    "score.decide": "score.decision_rule",
    "score.rows": "score.split",
    "score.runs": "score.ensemble",
    "score.tta": "score.test_time_augmentation",
    "train.force": "train.allow_changes",
    "optim.warm_up": "optim.pct_start",
    "optim.div": "optim.div_factor",
    "model.norm": "model.batch_norm",
    "lr_range.low": "lr_range.start_lr",
    "lr_range.high": "lr_range.end_lr",
}
MEMBER_OPTIONS = tuple(name for name, option in OPTIONS.items() if option.per_member)


def get_config() -> ConfigDict:
    """Return the defaults, which are the notebook's first stage.

    The ConfigDict is locked: setting an unknown name raises AttributeError.
    """
    config = ConfigDict()
    for name, option in OPTIONS.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[last] = option.default
    return config.lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Return `{"data.size": 128, ...}`: the options of all sections in one dict."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def may_change_on_resume(name: str) -> bool:
    """Return whether a resumed run may have another value of the option `name`."""
    return OPTIONS[name].on_resume == "free"


def shared_by_processes(config: ConfigDict) -> dict[str, Any]:
    """Return `{"config.seed": 0, ...}`: the options that all processes of a run must share."""
    options = flatten(config).items()
    return {f"config.{name}": value for name, value in options if not OPTIONS[name].per_process}


def translate_saved(options: dict[str, Any], source: object = "a saved run") -> dict[str, Any]:
    """Return a saved run's options under current names, with defaults for new options.

    Args:
      options: `{"data.size": 128, ...}` from a config.json or a checkpoint; tuples are lists there.
      source: the file or folder they come from, for the message.

    Raises:
      BadInput: an option is unknown.
    """
    saved = {RENAMED.get(name, name): value for name, value in options.items()}
    if unknown := sorted(saved.keys() - OPTIONS.keys()):
        raise BadInput(
            f"{source} has the option {unknown[0]}, which this version of planet_jax does not "
            "know; use the version that saved it"
        )
    return {name: as_json(option.default) for name, option in OPTIONS.items()} | saved


def as_json(value: Any) -> Any:
    """Return an option's value as JSON reads it back: a tuple becomes a list."""
    return list(value) if isinstance(value, tuple) else value


def unknown_option(name: str) -> str:
    """Return the message for a name that is not an option, with its new name or the nearest one."""
    if name in RENAMED:
        return f"config.{name} is now config.{RENAMED[name]}"
    return f"config.{name} is not an option; {did_you_mean(name, OPTIONS)}"


def check(name: str, value: Any) -> None:
    """Check the value of one known option.

    Raises:
      BadInput: the value has another type than the default or is out of bounds.
    """
    option = OPTIONS[name]
    if not option.accepts(value):
        raise BadInput(f"config.{name} = {value!r} must be {option.rule} ({option.help})")


def validate(config: ConfigDict) -> None:
    """Check every option, expand the paths, and check the options that depend on each other.

    Raises:
      BadInput: an option is unknown, missing, of another type, out of bounds or in conflict.
    """
    flat = flatten(config)
    for name, value in flat.items():
        if name not in OPTIONS:
            raise BadInput(unknown_option(name))
        check(name, value)
    for name in OPTIONS.keys() - flat.keys():
        raise BadInput(f"config.{name} is missing; start the config from configs/base.py")
    _expand_paths(config)
    conflicts.check_hosts(config.hosts)
    conflicts.check_layout(config.data)
    conflicts.check_start(config)
    conflicts.check_training(config)


def _expand_paths(config: ConfigDict) -> None:
    """Replace `~` and `$NAME` in the options that are paths.

    Raises:
      BadInput: a home or variable is not known, or a path may not be this URL.
    """
    for name, value in flatten(config).items():
        if OPTIONS[name].path:
            values = [value] if isinstance(value, str) else value
            paths = tuple(
                conflicts.checked_url(name, path) if OPTIONS[name].url and conflicts.is_url(path)
                else conflicts.expanded_path(name, path) for path in values
            )  # fmt: skip
            new = paths[0] if isinstance(value, str) else paths
            config.update_from_flattened_dict({name: new})
