"""One function a command. Each takes a checked config and tells on stdout what it did.

Those that need a `Stage` take one that is made already, to save making it again.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from planet_jax.config import shared_by_processes, validate
from planet_jax.config_file import load
from planet_jax.data import dataset
from planet_jax.data import labels as label_file
from planet_jax.data import prepare as preparation
from planet_jax.model import weights
from planet_jax.model.summary import layer_table
from planet_jax.preflight import examine as preflight_figures
from planet_jax.preflight import targets
from planet_jax.results import evaluate as evaluation
from planet_jax.results import (
    inference,
    pictures,
    submission,
    tables,
)
from planet_jax.results import predict as prediction
from planet_jax.results.export import folder as exporting
from planet_jax.results.report import parts as report_page
from planet_jax.runtime import distributed
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import atomic_file, lock_folder
from planet_jax.train import checkpoint, loop
from planet_jax.train import lr_range as range_test
from planet_jax.train.stage import Stage

COMPETITION_CLASSES, COMPETITION_CHIPS = 17, 40_479


def prepare(config: ConfigDict) -> dataset.Dataset:
    """Obtain and build the data set of config.data, and return it."""
    data_set = preparation.prepare(config.data, config.sample)
    n, height, width, _ = data_set.chips.shape
    classes = len(data_set.labels.classes)
    print(f"{config.data.root}: {n} chips of {height}x{width}, {classes} labels, ready")
    return data_set


def _stage(config: ConfigDict, *, trained: bool = False) -> Stage:
    """Makes the stage, but first looks whether it can write, and whether its weights are there."""
    _writable(Path(config.workdir))
    if trained:
        checkpoint.require(Path(config.workdir), config.checkpoint)
    elif checkpoint.read_meta(Path(config.workdir), "latest"):
        pass  # it has weights of its own
    elif config.init_from:
        checkpoint.require(Path(config.init_from), "latest", newest=True)
    else:
        distributed.run_on_main(lambda: weights.require(config.model.weights))
    return Stage(config, prepare(config))


def train(config: ConfigDict, stage: Stage | None = None) -> None:
    """Trains the stage in config.workdir, or goes on with it; of a finished run only tells."""
    run = Path(config.workdir)
    with _only_process_in(run):
        if loop.finished(config, run):
            print(f"{run}: this run is finished")
        else:
            stage = stage or _stage(config)
            (run / "history.png").unlink(missing_ok=True)  # of a run that was shorter then
            loop.train(stage, run)
        if distributed.is_main_process() and not (run / "history.png").exists():
            pictures.save(pictures.training_curves(run), run / "history.png")
    print(distributed.run_on_main(lambda: tables.history_table(run)))
    print(f"{run}: history.csv, steps.csv, history.png and checkpoints/ are there")


def summary(config: ConfigDict) -> None:
    """Prints fastai's layer table of the stage's classifier."""
    classes = COMPETITION_CLASSES
    if (Path(config.data.root) / label_file.CSV).exists():
        classes = len(label_file.read_labels(Path(config.data.root)).classes)
    rows = layer_table(classes, config.data.size, config.optim.freeze, config.model.name)
    print(tables.layer_lines(rows))


def preflight(config: ConfigDict, target: str, as_json: bool) -> None:
    """Says what the stage would need, and could reach, on hardware that is not here.

    Raises:
      BadInput: it does not fit; no such target, or its compiler is missing.
    """
    classes, chips = COMPETITION_CLASSES, COMPETITION_CHIPS
    root = Path(config.data.root)
    if (root / label_file.CSV).exists():
        labels = label_file.read_labels(root)
        classes, chips = len(labels.classes), len(labels.names)
    train_rows, _ = label_file.split(chips, config.data.valid_fraction, config.data.split_seed)
    found = preflight_figures.examine(config, targets.find(target), classes, len(train_rows))
    print(json.dumps(found, indent=1) if as_json else tables.preflight(found))
    if not found["fits"]:
        raise BadInput(
            f"config.data.batch_size = {found['batch_size']} does not fit {target}; "
            f"the largest that does: {found['largest_batch']}"
        )


def show_batch(config: ConfigDict, stage: Stage | None = None) -> Figure:
    """Draws the first 16 chips of the first training batch, augmented, to show_batch.png."""
    path = Path(config.workdir) / "show_batch.png"
    _writable(path.parent)
    stage = stage or Stage(config, prepare(config))  # which needs no weights
    batch = next(stage.train_batches())
    classes = np.array(stage.data.labels.classes)
    captions = [" ".join(classes[target > 0]) for target in batch["targets"][:16]]
    figure = pictures.chip_grid(batch["chips"][:16], captions)
    pictures.save(figure, path)
    print(f"{path}: chips of the first batch, augmented, with their labels")
    return figure


def lr_range(config: ConfigDict, stage: Stage | None = None) -> Figure:
    """Runs the LR-range test from the stage's start; writes lr_range.csv and lr_range.png."""
    stage, run = stage or _stage(config), Path(config.workdir)
    lrs, losses = range_test.run(stage, stage.start_state())
    table = pd.DataFrame({"step": np.arange(len(lrs)), "lr": lrs, "loss": losses})
    with atomic_file(run / "lr_range.csv") as temporary:
        table.to_csv(temporary, index=False)
    suggestions = range_test.suggest(lrs, losses) if len(lrs) >= range_test.FEWEST else ()
    figure = pictures.lr_range_curve(lrs, losses, suggestions)
    pictures.save(figure, run / "lr_range.png")
    for name, lr in zip(pictures.SUGGESTIONS, suggestions, strict=False):
        print(f"{name}: {lr:.2E}")
    if not suggestions:
        print(f"no suggestion: the loss exploded after {len(lrs)} steps")
    print(f"{run / 'lr_range.png'}: the curve")
    return figure


def _trained_stages(config: ConfigDict, stage: Stage | None) -> list[Stage]:
    """The stage of workdir's run, or one for each of config.score.ensemble."""
    if not config.score.ensemble:
        return [stage or _stage(config, trained=True)]
    _writable(Path(config.workdir))
    members = [inference.member_config(config, run) for run in config.score.ensemble]
    data = stage.data if stage else prepare(config)
    return [Stage(member, data) for member in members]


def evaluate(config: ConfigDict, stage: Stage | None = None) -> dict[str, Any]:
    """Scores the run, or the average of score.ensemble, and compares the ways to decide on labels.

    Returns what it writes to metrics.json.
    """
    found = evaluation.evaluate(config, _trained_stages(config, stage))
    print(tables.evaluation(found))
    files = "metrics_train.json, chips_train.csv and mistakes_train.csv"
    if found["split"] == "valid":
        files = "metrics.json, decisions.json, chips.csv and mistakes.csv"
    print(f"{config.workdir}: {files} are there; {found['mistakes']} chips have a wrong label")
    return found


def predict(config: ConfigDict, stage: Stage | None = None) -> pd.DataFrame:
    """Predicts every image of predict.folder (test-jpg by default); writes predictions.csv, which
    it returns, and on request the competition's submission.csv."""
    files = prediction.chips(config)
    distributed.require_same({"config.predict.folder": [file.name for file in files]})
    order = submission.order(config, files) if config.predict.submission else []
    table = prediction.predict(config, _trained_stages(config, stage), files)
    path = Path(config.workdir) / "predictions.csv"
    print(f"{path}: tags and probabilities of the {len(files)} chips of {files[0].parent}")
    if order:
        prediction.write(path.with_name("submission.csv"), submission.rows(table, order))
        print(f"{path.with_name('submission.csv')}: the tags of {len(order)} chips, in its order")
    return table


def report(config: ConfigDict) -> None:
    """Writes report.html, one page of all that the run folder tells; computes nothing anew."""
    run, root = Path(config.workdir), Path(config.data.root)
    _writable(run)
    for line in distributed.run_on_main(lambda: report_page.write(run, root)):
        print(line)
    print(f"{run / report_page.FILE}: open it in a browser")


def export(config: ConfigDict) -> None:
    """Writes workdir/export: weights and a compiled function that run without this package."""
    exporting.check(config)
    path = exporting.export(config, _stage(config, trained=True))
    print(f"{path}: model.safetensors, serving.bin, model.json, README.md and example.py are there")


def journey(config: ConfigDict, overrides: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Trains config.stages in order; evaluates, predicts and reports with the last.

    What is done stays done.

    `overrides` (options named on the command line, as {"train.epochs": 1}) are set in every stage.
    """
    stages = [load(file) for file in config.stages]
    if not stages:
        raise BadInput("config.stages is empty; try --config configs/demo.py")
    if own := sorted({"workdir", "init_from"} & overrides.keys()):
        raise BadInput(f"config.{own[0]} is each stage's own; a journey cannot set it for all")
    for stage_config in stages:
        stage_config.update_from_flattened_dict(dict(overrides))
        validate(stage_config)
        distributed.require_same(shared_by_processes(stage_config))
    last, runs = stages[-1], [Path(config.workdir) for config in stages]
    scored = [runs[-1] / "metrics.json", runs[-1] / "predictions.csv"]
    if last.predict.submission:
        scored.append(runs[-1] / "submission.csv")
    for config, run in zip(stages, runs, strict=True):
        done = loop.finished(config, run)
        wanted = run / "history.png", *(scored if config is last else ())
        if done and distributed.run_on_main(lambda: all(path.exists() for path in wanted)):  # noqa: B023
            print(f"{run}: this stage is finished")
            continue
        print(f"\n== {run}", flush=True)
        stage = _stage(config)
        if not done:
            for path in scored if config is last else ():
                path.unlink(missing_ok=True)  # of weights that were not the last
            if checkpoint.read_meta(run, "latest") is None:
                show_batch(config, stage)
                if config.lr_range.in_journey:
                    lr_range(config, stage)
        train(config, stage)  # which only draws what a run that is done still lacks
        if config is last:
            evaluate(config, stage)
            predict(config, stage)
    print(distributed.run_on_main(lambda: f"\n{tables.journey_table(runs)}"))
    if last.data.source == "kaggle":
        print(f"\n{tables.NOTEBOOK}")
    for picture in sorted(path for run in runs for path in run.glob("*.png")):
        print(picture)
    report(last)


@contextlib.contextmanager
def _only_process_in(run: Path) -> Iterator[None]:
    """Keeps a second process out of a run folder; the lock goes with the process.

    Of a run that was refused before it began nothing stays.
    """
    if not distributed.is_main_process():
        yield
        return
    is_new = not run.exists()
    _writable(run)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(run, wait=False))
        except BlockingIOError:
            raise BadInput(f"config.workdir = {run}: another process trains there") from None
        try:
            yield
        except BadInput:
            if is_new and not any((run / "checkpoints").glob("*/[0-9]*")):
                shutil.rmtree(run, ignore_errors=True)
            raise


def _writable(run: Path) -> None:
    """Refuses a folder that cannot be made or written to; leaves no trace of the trial."""
    if not distributed.is_main_process():
        return
    try:
        is_new = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
        if is_new:
            run.rmdir()
    except OSError as error:
        raise BadInput(f"config.workdir = {run}: cannot be written to ({error.strerror})") from None


COMMANDS = {
    command.__name__: command
    for command in (
        train, prepare, preflight, summary, show_batch, lr_range, evaluate, predict, export,
        report, journey,
    )
}  # fmt: skip
