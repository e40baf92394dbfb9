"""Fetch in a process that a test can kill: python -m tests.kaggle_fetch URL ROOT."""

import pathlib
import sys

import kagglesdk.kaggle_env as env

url, root = sys.argv[1:]
env._env_to_endpoint[env.KaggleEnv.PROD] = url
import py7zr  # noqa: E402, F401
from kaggle.api.kaggle_api_extended import KaggleApi  # noqa: E402, F401

from planet_jax.data import kaggle  # noqa: E402

print("ready", flush=True)
kaggle.fetch(pathlib.Path(root))
