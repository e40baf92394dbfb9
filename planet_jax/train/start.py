"""Where a stage starts: its own checkpoint, the weights of another run, or `model.weights`."""

from dataclasses import dataclass

from ml_collections import ConfigDict

from planet_jax.model import classifier, source, weights
from planet_jax.model.classifier import IMAGENET, Normalization, Variables
from planet_jax.runtime.distributed import arrays_on_main, on_main
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify
from planet_jax.storage.bucket import local_path
from planet_jax.train.checkpoint import (
    Checkpoint,
    Flat,
    from_host,
    open_checkpoint,
    require_checkpoint,
    to_host,
)
from planet_jax.train.metadata import recorded_normalization
from planet_jax.train.stage import Stage
from planet_jax.train.steps import TrainState, create_state, replicate


@dataclass(frozen=True)
class Start:
    """Where a stage starts: at a checkpoint, or at `model.weights` if there is none.

    Attributes:
      own: the latest checkpoint of this run, to resume from.
      previous: the latest checkpoint of `init_from`, whose weights start a new run.
      normalization: how the network of these weights normalizes its input.
    """

    own: Checkpoint | None = None
    previous: Checkpoint | None = None
    normalization: Normalization = IMAGENET

    @property
    def is_fresh(self) -> bool:
        """Whether the stage starts at `model.weights`."""
        return self.own is None and self.previous is None

    @property
    def epoch_offset(self) -> int:
        """Epochs of the stages before this one."""
        if self.own:
            return self.own.metadata.epoch_offset
        if self.previous:
            metadata = self.previous.metadata
            return metadata.epoch_offset + metadata.provenance.config["train.epochs"]
        return 0


def find_start(config: ConfigDict, resume: bool = True, needs_weights: bool = True) -> Start:
    """Open the checkpoint that the stage starts from, or check that `model.weights` exist.

    Without `needs_weights` a new stage's normalization is not found.

    Raises:
      BadInput: every checkpoint is damaged. With `needs_weights`, also: the newest checkpoint
        of `init_from` is damaged, or was trained with another normalization than the options give;
        or the weights are missing.
    """
    own = open_checkpoint(local_path(config.workdir), "latest") if resume else None
    if own is not None:
        return Start(own, normalization=own.metadata.provenance.normalization)
    if config.init_from:
        run = local_path(config.init_from)
        if not needs_weights:
            return Start(previous=open_checkpoint(run, "latest"))
        checkpoint = require_checkpoint(run, "latest", newest_only=True)
        if not checkpoint.metadata.is_complete:
            step, steps = checkpoint.metadata.step, checkpoint.metadata.steps
            notify(f"{run}: init_from starts from an unfinished run, step {step} of {steps}")
        normalization = checkpoint.metadata.provenance.normalization
        if _given(config.model) not in (None, normalization):
            raise BadInput(
                f"{run} was trained with mean {normalization.mean} and std {normalization.std}, "
                "not with config.model.mean and config.model.std; leave both empty"
            )
        return Start(previous=checkpoint, normalization=normalization)
    if needs_weights:
        mean, std = on_main(_normalization_of)(config.model)
        return Start(normalization=Normalization(tuple(mean), tuple(std)))
    return Start()


def _normalization_of(model: ConfigDict) -> Normalization:
    """Return the normalization that the options give, or the weights, or else ImageNet's."""
    path = source.locate(model.weights, model.name)
    return _given(model) or (source.normalization(path) if path else None) or IMAGENET


def _given(model: ConfigDict) -> Normalization | None:
    return Normalization(model.mean, model.std) if model.mean else None


def known_normalization(config: ConfigDict) -> Normalization | None:
    """Return a stage's normalization if it is known without reading weights.

    A run's config.json records it, and so does that of the run in `init_from`.
    """
    for run in (config.workdir, config.init_from):
        if run and (recorded := recorded_normalization(local_path(run))):
            return recorded
    random = config.model.weights == "random" and not config.init_from
    return _given(config.model) or (IMAGENET if random else None)


def initial_state(stage: Stage, start: Start) -> TrainState:
    """Return the state before the first step: weights, and an optimizer without history.

    Raises:
      BadInput: the weights belong to another model or vocabulary.
    """
    config = stage.config
    variables = classifier.init(len(stage.classes), config.seed, config.model.name)
    fresh_head = config.model.head == "fresh"
    if fresh_head:
        origin = start.previous.run if start.previous else config.model.weights
        notify(f"model.head=fresh: the backbone is from {origin}, the head from seed {config.seed}")
    if start.previous is None:
        flat = _filled(variables, config.model, fresh_head)
        loaded = from_host(flat, variables, config.model.weights)
        return replicate(create_state(loaded, stage.recipe))
    metadata, run = start.previous.metadata, start.previous.run
    if not fresh_head:
        advice = "set model.head=fresh to keep the backbone alone, or data.root to the run's chips"
        check_vocabulary(start.previous, stage, advice)
    if metadata.valid_fingerprint != stage.data.labels.fingerprint(stage.valid_rows):
        notify(f"{run} used other validation chips: it may have trained on some that validate now")
    flat = start.previous.arrays("weights")
    if fresh_head:
        backbone = {name: array for name, array in flat.items() if "/head/" not in name}
        flat = to_host(variables) | backbone
    return replicate(create_state(from_host(flat, variables, str(run)), stage.recipe))


@arrays_on_main
def _filled(variables: Variables, model: ConfigDict, fresh_head: bool) -> Flat:
    path = source.locate(model.weights, model.name)
    return to_host(weights.fill(variables, path, fresh_head) if path else variables)


def restored_state(stage: Stage, checkpoint: Checkpoint) -> TrainState:
    """Return the state that a checkpoint of this run holds.

    Raises:
      BadInput: the checkpoint holds another model.
    """
    config = stage.config
    variables = classifier.abstract_variables(len(stage.classes), config.model.name)
    template = create_state(variables, stage.recipe)
    arrays = checkpoint.arrays("weights", "optimizer")
    return replicate(from_host(arrays, template, str(checkpoint.run)))


def check_vocabulary(
    checkpoint: Checkpoint,
    stage: Stage,
    advice: str = "set data.root to chips with the run's labels",
) -> None:
    """Refuse a checkpoint whose vocabulary is not that of the data.

    Raises:
      BadInput: the vocabularies differ; the message names the labels and gives the advice.
    """
    saved, root = checkpoint.metadata.classes, stage.config.data.root
    if saved != stage.classes:
        differing = first_few(sorted(set(saved) ^ set(stage.classes)), 20)
        raise BadInput(
            f"the labels of {root} are not those that {checkpoint.run} was trained on; they differ "
            f"in: {differing}; {advice}"
        )
