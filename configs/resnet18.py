"""Train the notebook's first stage with ResNet18, for computers without an accelerator.

    python -m planet_jax.main --config configs/resnet18.py

Expected: a step costs about 0.4 of ResNet50's on a CPU (docs/benchmarks.md). Its F2 on the
competition's chips has not been measured.
"""

from ml_collections import ConfigDict

from planet_jax.config_file import load


def get_config() -> ConfigDict:
    config = load("stage1")
    config.workdir = "runs/resnet18"
    config.model.name = "resnet18"
    return config
