"""Train the notebook's first stage with ResNet101 in bfloat16, for TPUs and GPUs.

    python -m planet_jax.main --config configs/resnet101.py

Expected: docs/benchmarks.md has the steps on a v5e and an H100, by the compilers' programs. Its F2
on the competition's chips has not been measured, and no accelerator was available.
"""

from ml_collections import ConfigDict

from planet_jax.config_file import load


def get_config() -> ConfigDict:
    config = load("stage1")
    config.workdir = "runs/resnet101"
    config.model.name = "resnet101"
    config.train.precision = "bfloat16"
    return config
