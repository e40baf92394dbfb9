"""Run all four stages in a few minutes on two CPU cores, on the drawn sample, at 64 and 128 px.

    make demo
    python -m planet_jax.main journey --config configs/demo.py

Each stage is the notebook's own config at half the size, from random weights, with fewer chips,
epochs and points of the learning-rate range test. `--config demo:stage1` is one stage.

Expected: F2 0.78 to 0.79 on 56 validation chips, by CPU. The best constant prediction
scores 0.69. The demo takes four minutes on two cores of an AMD EPYC. With
`--config.model.name=resnet18` it takes two, and 1.4 once the steps are in the compilation cache.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base
from planet_jax.config_file import load
from planet_jax.runtime.errors import BadInput, did_you_mean

STAGES = ("stage1", "stage2", "stage1_256", "stage2_256")


def get_config(stage: str = "") -> ConfigDict:
    if not stage:
        config = base()
        config.workdir = "runs/demo/average"  # of an average: journey.folds, journey.seeds
        config.stages = tuple(f"demo:{name}" for name in STAGES)
        return config
    if stage not in STAGES:
        raise BadInput(f"demo:{stage}: no such stage; {did_you_mean(stage, STAGES)}")
    config = load(stage)
    config.workdir = config.workdir.replace("runs", "runs/demo")
    config.checkpoint = "latest"  # "best" is chosen on the chips that are scored
    config.init_from = config.init_from.replace("runs", "runs/demo")
    config.data.source = "sample"
    config.data.root = "data/demo"
    config.data.size //= 2
    config.data.batch_size = 16
    config.sample.chips = 280
    config.model.weights = "random"
    config.train.epochs = 2
    config.lr_range.steps = 20
    config.lr_range.in_journey = config.optim.freeze
    return config
