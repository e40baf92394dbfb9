"""Test what `import planet_jax` provides and what the wheel contains."""

import subprocess
import sys
import tomllib

import numba
import pytest

import planet_jax
from planet_jax.compiled import compiled
from tests.support import ROOT


def test_import_offers_what_a_notebook_needs_and_starts_no_backend():
    code = (
        "import sys, planet_jax; print(planet_jax.__version__, planet_jax.get_config().data.size, "
        "'jax' in sys.modules)"
    )
    run = [sys.executable, "-c", code]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [planet_jax.__version__, "128", "False"]
    assert callable(planet_jax.commands.train)
    with pytest.raises(AttributeError, match="no attribute 'comands'"):
        _ = planet_jax.comands


def test_a_compiled_function_does_not_need_a_cache(monkeypatch):
    """Make every cache locator of numba fail, as if no folder could be written."""

    def refuse(locator):
        raise PermissionError

    monkeypatch.setattr(numba.core.caching._CacheLocator, "ensure_cache_path", refuse)
    assert compiled(lambda x: x + 1)(2) == 3


def test_wheel_has_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path.parent for path in (ROOT / "planet_jax").rglob("__init__.py")]
    names = {".".join(folder.relative_to(ROOT).parts) for folder in found}
    assert set(listed) == names | {"planet_jax.configs"}
