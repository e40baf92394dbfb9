"""The commands. Each is a function that takes a checked config and prints its results.

In a run of several processes all processes compute, and only the main process writes and prints.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from planet_jax.config import shared_by_processes, validate
from planet_jax.data import describe, loader
from planet_jax.data import prepare as data_source
from planet_jax.data.dataset import Dataset
from planet_jax.data.split import count, group_numbers, split_rows
from planet_jax.model.summary import layer_table
from planet_jax.preflight import targets
from planet_jax.preflight.examine import examine
from planet_jax.results import (
    fitted_decisions,
    inference,
    journey_files,
    journey_tables,
    submission,
    tables,
)
from planet_jax.results import predict as predictions
from planet_jax.results.evaluate import Evaluation, compute_metrics, write_evaluation
from planet_jax.results.export import folder as export_folder
from planet_jax.runtime import distributed
from planet_jax.runtime.distributed import is_main_process, on_main
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import atomic_path, write_json
from planet_jax.runtime.signals import Stopped
from planet_jax.score import metrics
from planet_jax.storage.bucket import local_path
from planet_jax.train import chain, loop, trackers
from planet_jax.train import lr_range as range_test
from planet_jax.train.bucket_run import fetch
from planet_jax.train.metadata import Provenance
from planet_jax.train.mirror import Mirror
from planet_jax.train.resume import is_finished
from planet_jax.train.run_folder import check_writable, training_folder, with_buckets
from planet_jax.train.stage import make_stage
from planet_jax.train.start import (
    Start,
    check_vocabulary,
    find_start,
    initial_state,
    known_normalization,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prepare(config: ConfigDict) -> Dataset:
    """Draw or download missing chips, build the data set in data.cache and return it.

    Prints counts of the labels and of the split, and what looks wrong in them.
    """
    data = data_source.prepare(config.data, config.sample)
    n, height, width, _ = data.chips.shape
    classes = len(data.labels.classes)
    print(f"{config.data.root}: {n} chips of {height}x{width}, {classes} labels, ready")
    rows = split_rows(data.labels, config.data)
    groups = group_numbers(data.labels, config.data)
    print("\n".join(describe.lines(data.labels, *rows, groups)))
    describe.warn(data.labels, *rows, config.data)
    return data


def train(config: ConfigDict) -> None:
    """Train or resume the stage in config.workdir; a finished stage is not trained again."""
    trackers.check(config)
    with training_folder(config) as mirror:
        _train(config, find_start(config), mirror)


def _train(config: ConfigDict, start: Start, mirror: Mirror | None) -> None:
    run = local_path(config.workdir)
    if is_finished(start, config):
        print(f"{run}: this run is finished\n{_draw_history(run)}")
        return
    stage = make_stage(config, start.epoch_offset, start.normalization)
    if start.is_fresh:  # not repeated on a resume or in a later stage
        describe.warn(stage.data.labels, stage.train_rows, stage.valid_rows, config.data)
    with trackers.following(config, start.own) as followers:
        loop.train(stage, run, start, mirror, followers.add)
        print(_draw_history(run))
        followers.pictures(run)


@on_main
def _draw_history(run: Path) -> str:
    """Draw history.png; return the history table, or a warning if a table is damaged."""
    from planet_jax.results import pictures  # matplotlib is slow to import

    try:
        pictures.save(pictures.training_curves(run), run / "history.png")
        table = journey_tables.history_table(run)
    except (FileNotFoundError, KeyError, ValueError) as error:
        return f"{run}: steps.csv or history.csv is damaged or missing ({error})"
    return f"{table}\n{run}: history.csv, steps.csv, history.png, checkpoints/"


def summary(config: ConfigDict) -> None:
    """Print fastai's layer table of the stage's classifier, and how it normalizes chips."""
    classes, _ = count(config.data)
    layers = layer_table(classes, config.data.size, config.optim.freeze, config.model.name)
    print(tables.layer_lines(layers))
    print(tables.normalization_line(known_normalization(config)))


def preflight(config: ConfigDict, target: str, as_json: bool) -> None:
    """Compile the stage's steps for a TPU or GPU that is not attached, and print their costs.

    Call it in a process of its own: afterwards JAX uses only the CPU there (`targets.find`).

    Raises:
      BadInput: the stage does not fit, the target is unknown, or its compiler is not installed.
    """
    classes, chips = count(config.data)
    costs = examine(config, targets.find(target), classes, chips)
    print(json.dumps(costs, indent=1) if as_json else tables.preflight(costs))
    if not costs["fits"]:
        raise BadInput(
            f"config.data.batch_size = {costs['batch_size']} does not fit {target}; "
            f"the largest that does: {costs['largest_batch']}"
        )


@with_buckets
def show_batch(config: ConfigDict) -> "Figure":
    """Draw the first 16 chips of the first training batch, augmented, to show_batch.png."""
    from planet_jax.results import pictures  # matplotlib is slow to import

    path = local_path(config.workdir) / "show_batch.png"
    check_writable(path.parent)
    start = find_start(config, needs_weights=False)
    stage = make_stage(config, start.epoch_offset)
    batch = next(stage.train_batches())
    classes = np.array(stage.classes)
    captions = [" ".join(classes[target > 0]) for target in batch["targets"][:16]]
    figure = pictures.chip_grid(batch["chips"][:16], captions)
    if is_main_process():
        pictures.save(figure, path)
    print(f"{path}: chips of the first batch, augmented, with their labels")
    return figure


@with_buckets
def lr_range(config: ConfigDict) -> "Figure":
    """Run the LR-range test from the stage's start; write lr_range.csv and lr_range.png."""
    from planet_jax.results import pictures  # matplotlib is slow to import

    run = local_path(config.workdir)
    check_writable(run)
    start = find_start(config, resume=False)
    stage = make_stage(config, start.epoch_offset, start.normalization)
    lrs, losses = range_test.run(stage, initial_state(stage, start))
    suggestions = range_test.suggest(lrs, losses) if len(lrs) >= range_test.MIN_POINTS else ()
    figure = pictures.lr_range_curve(lrs, losses, suggestions)
    if is_main_process():
        table = pd.DataFrame({"step": np.arange(len(lrs)), "lr": lrs, "loss": losses})
        with atomic_path(run / "lr_range.csv") as temporary:
            table.to_csv(temporary, index=False)
        pictures.save(figure, run / "lr_range.png")
    for name, lr in zip(pictures.SUGGESTIONS, suggestions, strict=False):
        print(f"{name}: {lr:.2E}")
    if not suggestions:
        print(f"no suggestion: the loss diverged after {len(lrs)} steps")
    print(f"{run / 'lr_range.png'}: the curve")
    return figure


@with_buckets
def evaluate(config: ConfigDict) -> dict[str, Any]:
    """Score the run, or the average of score.ensemble, and compare decision rules.

    Returns the content of metrics.json.

    Raises:
      BadInput: the data have other labels or validation chips than a run was trained with.
    """
    run = local_path(config.workdir)
    check_writable(run)
    checkpoints = inference.open_runs(config)
    stage = make_stage(config)
    fitted_decisions.check_weather(config, stage.classes)
    for checkpoint in checkpoints:
        check_vocabulary(checkpoint, stage)
    held_out = inference.held_out_rows(stage, checkpoints)
    models = inference.load_models(config, checkpoints)
    fitted_to = inference.probability_source(config, models)
    stored = None
    if config.score.split == "train":
        rows = stage.train_rows
        # decide by a fit to the validation chips
        stored = fitted_decisions.load_decision(config, stage.classes, fitted_to)
        source = partial(loader.score_batches, stage.data, rows)
        logits = inference.ensemble_logits(models, source, len(rows), "scoring")
    else:
        rows, logits = inference.held_out_logits(models, held_out, stage.data)
    evaluation = Evaluation(config, logits, stage.data.labels.targets[rows], stage.classes, stored)
    result = compute_metrics(evaluation)
    if is_main_process():
        if not (run / "history.csv").exists():  # an ensemble, which no training described
            about = Provenance.current(config, models[0].metadata.provenance.normalization)
            write_json(run / "config.json", dataclasses.asdict(about))
        written = write_evaluation(run, evaluation, result, stage.data.labels, rows, fitted_to)
        print(tables.evaluation(result))
        print(f"{run}: wrote {', '.join(written)}; {result['mistakes']} chips are mispredicted")
    if config.score.explain:
        from planet_jax.results.explain import explain  # matplotlib is slow to import

        result |= explain(run, models[0], evaluation, result, stage, rows)
    return result


@with_buckets
def predict(config: ConfigDict) -> pd.DataFrame:
    """Predict every image of predict.folder (default: test-jpg); write predictions.csv.

    With predict.submission also writes submission.csv. Images that cannot be read are named in
    skipped.csv. Returns the table of predictions.csv.

    Raises:
      BadInput: no image is readable, or predict.strict or predict.submission needs one that is not.
    """
    run = local_path(config.workdir)
    check_writable(run)
    checkpoints = inference.open_runs(config)
    if not config.predict.folder:
        data_source.obtain(config.data, config.sample)
    images = predictions.image_files(config)
    names, files = list(images), list(images.values())
    distributed.require_same({"config.predict.folder": names})
    order = submission.order(config, names) if config.predict.submission else []
    models = inference.load_models(config, checkpoints)
    classes = models[0].metadata.classes
    decision = fitted_decisions.load_decision(
        config, classes, inference.probability_source(config, models)
    )
    own: dict[int, str] = {}  # reasons, for this process's share of the images
    source = partial(loader.folder_batches, files, None if config.predict.strict else own)
    logits = inference.ensemble_logits(models, source, len(files), "predicting")
    skipped = dict(item for part in distributed.gather([*own.items()]) for item in part)
    kept = [i for i in range(len(files)) if i not in skipped]
    reasons = {names[i]: reason for i, reason in sorted(skipped.items())}
    if not kept:
        raise BadInput(f"{files[0]}: {reasons[names[0]]}; none of {len(files)} images can be read")
    probabilities = metrics.sigmoid(logits[kept])
    table = predictions.table(
        [names[i] for i in kept], classes, decision.calibrated(probabilities),
        decision(probabilities),
    )  # fmt: skip
    if is_main_process():
        print("\n".join(predictions.write(run, table, reasons, order, files[0].parent)))
    if missing := [name for name in order if name in reasons]:
        raise BadInput(
            f"{run}: no submission.csv, because {len(missing)} of its chips cannot be read: "
            f"{first_few(missing)}; fetch them again"
        )
    return table


@with_buckets
def report(config: ConfigDict) -> None:
    """Write report.html, one page that shows the run folder; nothing is computed again."""
    from planet_jax.results.report import page  # as pictures above

    run = local_path(config.workdir)
    check_writable(run)
    for line in on_main(page.write)(run, local_path(config.data.root)):
        print(line)
    print(f"{run / page.FILE}: open it in a browser")


@with_buckets
def export(config: ConfigDict) -> None:
    """Write workdir/export: weights and a compiled function that run without this package."""
    export_folder.check(config)
    check_writable(local_path(config.workdir))
    models = inference.load_models(config, inference.open_runs(config))
    fitted_to, classes = inference.probability_source(config, models), models[0].metadata.classes
    decision = fitted_decisions.load_decision(config, classes, fitted_to)
    if is_main_process():
        path = export_folder.write(config, models[0], decision, fitted_to)
        print(f"{path}: wrote {', '.join(sorted(file.name for file in path.iterdir()))}")


def journey(
    config: ConfigDict, overrides: Mapping[str, Any] = MappingProxyType({}), file: str = ""
) -> None:
    """Train config.stages in order; evaluate, predict and report the last, or the average.

    A stage that is finished is not trained again. `overrides` are options of the command line, for
    example {"train.epochs": 1}, set in every stage; model.head only applies to the first stage.
    `file` is the file of `config`; stages are also searched beside it.
    """
    plan = chain.plan(config, chain.load_stages(config, overrides, file))
    for stage in plan.configs:
        validate(stage)
        distributed.require_same(shared_by_processes(stage))
        trackers.check(stage)
    final = plan.final
    if final.predict.folder:
        predictions.image_files(final)  # raises BadInput before any training
    results = local_path(final.workdir)
    on_main(fetch)(final.workdir, ())
    is_new = journey_files.remove_others(results, final)
    for stages in plan.chains.values():
        for stage in stages:
            is_new |= _journey_stage(stage, results, explore=stages is plan.first)
    refused = None
    if is_new or not journey_files.exist(results, journey_files.METRICS):
        _stop_if_requested()
        if plan.is_ensemble:
            print(f"\n== {results}", flush=True)
        evaluate(final)
    try:
        _journey_predict(final, is_new)
    except BadInput as error:  # after hours of training: the table and the report come first
        refused = error
    chains = {
        label: [local_path(stage.workdir) for stage in stages]
        for label, stages in plan.chains.items()
    }
    print(f"\n{on_main(journey_tables.journey_table)(chains, results)}")
    if final.data.source == "kaggle":
        shapes = [(stage.data.size, stage.optim.freeze) for stage in plan.first]
        print(f"\n{on_main(journey_tables.headline)(chains, shapes, results)}")
    runs = [local_path(stage.workdir) for stage in plan.first]
    for picture in sorted(path for run in runs for path in run.glob("*.png")):
        print(picture)
    report(final)
    if refused:
        raise refused


def _journey_stage(config: ConfigDict, results: Path, explore: bool) -> bool:
    """Train one stage, if it is not finished; return whether it was trained.

    With `explore` first draw a batch and run the LR-range test. What the journey wrote to the
    folder `results` is removed before the training.
    """
    run = local_path(config.workdir)
    print(f"\n== {run}", flush=True)
    with training_folder(config) as mirror:
        start = find_start(config)
        if explore and not start.own:
            show_batch(config)
            if config.lr_range.in_journey:
                lr_range(config)
        trains = not is_finished(start, config)
        if trains:  # replaces the weights that the results describe
            journey_files.remove(results)
        _train(config, start, mirror)
    return trains


def _journey_predict(config: ConfigDict, is_new: bool) -> None:
    """Predict, if results are new or missing; print a line if there is nothing to predict."""
    files = [journey_files.PREDICTIONS]
    if config.predict.submission:
        files.append(journey_files.SUBMISSION)
    if not is_new and journey_files.exist(local_path(config.workdir), *files):
        return
    _stop_if_requested()
    if on_main(predictions.has_images)(config):
        predict(config)
    else:
        print(f"nothing to predict: no images in {config.data.root}/{predictions.TEST}")


def _stop_if_requested() -> None:
    """Raise Stopped after a SIGTERM to one of several processes; a single process ends at once."""
    if distributed.stop_requested():
        raise Stopped
