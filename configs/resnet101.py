"""Train the notebook's first stage with ResNet101 in bfloat16, for TPUs and GPUs.

    python -m planet_jax.main --config configs/resnet101.py

Expected: the command preflight computes what a step costs on an accelerator. None was available
here, and the F2 on the competition's chips has not been measured.
"""

from ml_collections import ConfigDict

from planet_jax.config_file import load


def get_config() -> ConfigDict:
    config = load("stage1")
    config.workdir = "runs/resnet101"
    config.model.name = "resnet101"
    config.train.precision = "bfloat16"
    return config
