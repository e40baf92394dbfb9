"""Plan a journey: the chains of stages to train, one per fold and seed, and the average of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from planet_jax.runtime.errors import BadInput, did_you_mean
from planet_jax.storage.bucket import local_path

Chain = list[ConfigDict]  # stages in order


@dataclass(frozen=True)
class Plan:
    """What a journey trains, and which run has its results.

    Attributes:
      chains: the stages of each fold and seed, by a label such as "fold0-seed1"; {"": stages}
        without folds and seeds.
      final: the config of the results: the last stage, or the ensemble.
    """

    chains: dict[str, Chain]
    final: ConfigDict

    @property
    def is_ensemble(self) -> bool:
        """Whether the results are an average of several runs."""
        return bool(self.final.score.ensemble)


def plan(journey: ConfigDict, stages: Chain) -> Plan:
    """Return the plan of a journey's config, whose stages are loaded.

    With `journey.folds` or `journey.seeds` each run folder gets the fold and seed in its name, and
    the results are in the journey's own workdir.

    Raises:
      BadInput: a member is not a stage; the journey's workdir is that of a stage; a stage of a
        fold starts from a run outside the journey, which trained on chips of other folds.
    """
    options, folders = journey.journey, [local_path(stage.workdir) for stage in stages]
    if options.folds == 1:
        raise BadInput("config.journey.folds = 1 must be 0 or at least 2")
    for name in ("seeds", "members"):
        if len(set(options[name])) < len(options[name]):
            raise BadInput(f"config.journey.{name} = {options[name]}: name each once")
    chains = {}
    for fold in range(options.folds) if options.folds else [None]:
        for seed in options.seeds or [None]:
            parts = {"fold": fold, "seed": seed}.items()
            label = "-".join(f"{name}{number}" for name, number in parts if number is not None)
            chains[label] = [
                _variant(stage, folders, label, fold, options.folds, seed) for stage in stages
            ]
    members = options.members or journey.stages[-1:]
    for member in members:
        if member not in journey.stages:
            raise BadInput(
                f"config.journey.members: {member} is not in config.stages; "
                f"{did_you_mean(member, journey.stages)}"
            )
    if len(chains) == len(members) == 1 and members[0] == journey.stages[-1]:
        return Plan(chains, next(iter(chains.values()))[-1])
    if journey.workdir in {stage.workdir for chain in chains.values() for stage in chain}:
        raise BadInput(
            f"config.workdir = {journey.workdir} is a stage's; the average needs its own"
        )
    final = next(iter(chains.values()))[-1].copy_and_resolve_references()
    final.workdir, final.init_from = journey.workdir, ""
    chosen = [journey.stages.index(member) for member in members]
    final.score.ensemble = tuple(chain[i].workdir for chain in chains.values() for i in chosen)
    return Plan(chains, final)


def _variant(
    stage: ConfigDict,
    folders: Sequence[Path],
    label: str,
    fold: int | None,
    folds: int,
    seed: int | None,
) -> ConfigDict:
    """Return a stage for one fold and seed; stages that start from one another still do."""
    stage = stage.copy_and_resolve_references()
    is_inside = bool(stage.init_from) and local_path(stage.init_from) in folders
    if fold is not None:
        if stage.init_from and not is_inside:
            raise BadInput(
                f"config.init_from = {stage.init_from} is a run outside the journey, which trained "
                "on chips of several folds; add its stage to config.stages"
            )
        stage.data.folds, stage.data.fold = folds, fold
    if seed is not None:
        stage.seed = seed
    if label:
        if is_inside:
            stage.init_from = f"{stage.init_from.rstrip('/')}-{label}"
        stage.workdir = f"{stage.workdir.rstrip('/')}-{label}"
    return stage
