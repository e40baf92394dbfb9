"""Go past the notebook on the competition's chips: five folds, two sizes, eight views, one average.

    python -m planet_jax.main journey --config configs/beyond.py

Trains the notebook's four stages on each of five stratified folds, averages both full stages of all
folds, fits a threshold per class out of fold, and writes one submission for 61,191 test chips. It
ends with a table beside the notebook's scores, fast.ai's and the winner's (0.9332). That takes five
times the notebook's training. `--config beyond:stage1` is one stage.

Each choice has its reason below. "Measured" refers to docs/recipes.md, on other chips and without
pretrained weights. Nothing here was tried on the competition's chips.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base
from planet_jax.config_file import load
from planet_jax.runtime.errors import BadInput, did_you_mean

STAGES = ("stage1", "stage2", "stage1_256", "stage2_256")


def get_config(stage: str = "") -> ConfigDict:
    if not stage:
        config = base()
        config.workdir = "runs/beyond/average"
        config.stages = tuple(f"beyond:{name}" for name in STAGES)
        config.journey.folds = 5  # measured for seeds: an average is a gain; for folds: untested
        config.journey.members = ("beyond:stage2", "beyond:stage2_256")  # two sizes: untested
        return config
    if stage not in STAGES:
        raise BadInput(f"beyond:{stage}: no such stage; {did_you_mean(stage, STAGES)}")
    config = load(stage)
    config.workdir = config.workdir.replace("runs", "runs/beyond")
    config.init_from = config.init_from.replace("runs", "runs/beyond")
    config.checkpoint = "latest"  # "best" is chosen on the chips that are scored
    config.score.test_time_augmentation = "dihedral"  # measured: a gain
    config.score.decision_rule = "per_class"  # measured: a gain
    config.data.test_chips = True
    config.predict.submission = True
    # Measured without a gain, so off: other losses, label smoothing, moving averages, restarts.
    return config
