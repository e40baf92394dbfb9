"""Run the notebook's four stages on the competition's chips, then score, predict and report.

    python -m planet_jax.main journey --config configs/journey.py

Expected: F2 0.926, 0.928, 0.930 and 0.931 after the four stages (the notebook and fast.ai's course
run, in fastai v1).
This program has not been trained on the competition's chips. The README lists what was measured.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.workdir = "runs/average"  # of an average: journey.folds, journey.seeds
    config.stages = ("stage1", "stage2", "stage1_256", "stage2_256")
    return config
