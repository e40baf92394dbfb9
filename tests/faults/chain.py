"""Configs of four small stages, chained as in the notebook, in `run` of the working folder.

FAULTS_RUNS names another folder, or a bucket. The network is the tiny one, so that fifty kills do
not take a day. FAULTS_NETWORK=whole selects ResNet50. Everything else is the real program.
"""

import os

from ml_collections import ConfigDict

from planet_jax.config import get_config as base

STAGES = ("stage1", "stage2", "stage1_256", "stage2_256")


def get_config(stage: str = "") -> ConfigDict:
    """Return the config of the journey, or of one of its stages."""
    config = base()
    if not stage:
        config.stages = tuple(f"{__file__}:{name}" for name in STAGES)
        return config
    before = STAGES[: STAGES.index(stage)]
    runs = os.environ.get("FAULTS_RUNS", "run")
    config.workdir = f"{runs}/{stage}"
    config.init_from = f"{runs}/{before[-1]}" if before else ""
    config.checkpoint = "latest"
    config.data.root = "chips"
    config.data.cache = "run/cache"
    config.data.size = 64 if "256" in stage else 32
    config.data.batch_size = 4
    config.model.name = "resnet50" if os.environ.get("FAULTS_NETWORK") == "whole" else "tiny"
    config.model.weights = "random"
    config.optim.freeze = "stage1" in stage
    config.train.epochs = 2
    config.train.save_every = 3
    config.lr_range.steps = 17
    config.lr_range.in_journey = config.optim.freeze
    config.predict.folder = "chips/train-jpg"
    return config
