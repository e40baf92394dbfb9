"""Multi-label classification of satellite chips in pure JAX, after fastai's planet notebook.

Example:
    from planet_jax import commands, get_config

    config = get_config()
    config.data.root = "data/mine"
    commands.train(config)
"""

import importlib
from types import ModuleType

from planet_jax.config import get_config

__version__ = "0.1.0"
__all__ = ["__version__", "commands", "get_config"]


def __getattr__(name: str) -> ModuleType:
    if name == "commands":  # imported on first use: it imports jax and all other libraries
        return importlib.import_module("planet_jax.commands")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
