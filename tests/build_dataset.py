"""Build a data set in a process that a test can kill: python -m tests.build_dataset ROOT CACHE."""

import sys
from pathlib import Path

from planet_jax.data import dataset

print("ready", flush=True)
dataset.load(*map(Path, sys.argv[1:]))
