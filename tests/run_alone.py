"""Run a program where most packages cannot be imported: python -I run_alone.py FILE ARGUMENT ..."""

import runpy
import sys

HIDDEN = ("planet_jax", "flax", "optax", "orbax", "safetensors", "pandas", "numba")


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ImportError(f"{name} is hidden")


sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
