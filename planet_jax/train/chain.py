"""Plan a journey: the chains of stages to train, one per fold and seed, and the average of them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from planet_jax.config import validate
from planet_jax.config_file import load
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
    def configs(self) -> Chain:
        """All stages of all chains, and the config of the results."""
        return [*itertools.chain(*self.chains.values()), self.final]

    @property
    def first(self) -> Chain:
        """The stages of the first fold and seed."""
        return next(iter(self.chains.values()))

    @property
    def is_ensemble(self) -> bool:
        """Whether the results are an average of several runs."""
        return bool(self.final.score.ensemble)


def load_stages(journey: ConfigDict, overrides: Mapping[str, Any], file: str = "") -> Chain:
    """Load and check the stages of a journey's config, with the options of the command line.

    `overrides` are set in every stage; model.head only in the first. `file` is the journey's own
    file, beside which stages are also searched.

    Raises:
      BadInput: there are no stages, an override is not for all stages, or a stage is wrong.
    """
    stages = [load(stage, named_by=file) for stage in journey.stages]
    if not stages:
        raise BadInput("config.stages is empty; try --config demo")
    options = journey.journey
    if options.folds or options.seeds or options.members:  # workdir is that of the average
        overrides = {name: value for name, value in overrides.items() if name != "workdir"}
    if own := sorted({"workdir", "init_from"} & overrides.keys()):
        raise BadInput(f"config.{own[0]} differs per stage; set it in the stages' config files")
    for option, its_own in {"folds": ("data.folds", "data.fold"), "seeds": ("seed",)}.items():
        for name in its_own:
            if options[option] and name in overrides:
                raise BadInput(f"config.{name} is set by config.journey.{option}; leave it out")
    if overrides.get("score.split", "valid") != "valid":
        raise BadInput(
            "config.score.split: a journey scores validation chips; run evaluate afterward"
        )
    for stage in stages:
        stage.update_from_flattened_dict(dict(overrides))
        if "model.head" in overrides and stage is not stages[0]:
            stage.model.head = "keep"
        validate(stage)
    return stages


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
    last = next(iter(chains.values()))[-1]
    if len(chains) == len(members) == 1 and members[0] == journey.stages[-1]:
        return Plan(chains, last)
    if journey.workdir in {stage.workdir for chain in chains.values() for stage in chain}:
        raise BadInput(
            f"config.workdir = {journey.workdir} is a stage's; the average needs its own"
        )
    final = last.copy_and_resolve_references()
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
    """Return a stage for one fold and seed.

    Its run folder has `label` in its name, and so has `init_from` if it is one of `folders`.
    """
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
