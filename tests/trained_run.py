"""Write the run folder of a finished training, without training, for tests of the results."""

import dataclasses
from pathlib import Path

from planet_jax.data import loader
from planet_jax.runtime.files import write_json
from planet_jax.train.checkpoint import to_host
from planet_jax.train.checkpoint_writer import CheckpointWriter
from planet_jax.train.log import TrainLog
from planet_jax.train.metadata import Metadata, Provenance
from planet_jax.train.stage import make_stage
from planet_jax.train.start import find_start, initial_state
from planet_jax.train.validate import compute_logits

SKY = ["clear primary", "cloudy", "haze water", "partly_cloudy primary water", "clear water"] * 8


def write_trained_run(config):
    """Save random weights as `latest` and `best`; scale the logits to standard deviation 1."""
    start, data = find_start(config, resume=False), config.data
    stage = make_stage(config, start.epoch_offset, start.normalization)
    variables = initial_state(stage, start).variables
    chips = loader.score_batches(
        stage.data, stage.train_rows, size=data.size, batch_size=data.batch_size
    )
    logits = compute_logits(stage.predict_step, variables, chips, len(stage.train_rows), "scaling")
    weights = to_host(variables)
    weights["params/head/linear2/kernel"] /= logits.std()
    run, labels = Path(config.workdir), stage.data.labels
    metadata = Metadata(
        step=stage.steps,
        steps=stage.steps,
        steps_per_epoch=stage.steps_per_epoch,
        epoch_offset=0,
        classes=stage.classes,
        train_chips=len(stage.train_rows),
        valid_chips=len(stage.valid_rows),
        train_fingerprint=labels.fingerprint(stage.train_rows),
        valid_fingerprint=labels.fingerprint(stage.valid_rows),
        provenance=Provenance.current(config, stage.normalization),
        log=TrainLog(run, stage.schedule, data.batch_size, False, None).state(),
    )
    write_json(run / "config.json", dataclasses.asdict(metadata.provenance))
    with CheckpointWriter(run, resumed_step=0) as writer:
        writer.save({kind: {"weights": weights} for kind in ("latest", "best")}, metadata)
