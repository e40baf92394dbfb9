"""Test the installed package, without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile

from tests.support import ROOT

# The shipped config, with a small network and few chips.
SMALL = [
    "--config.model.name=tiny", "--config.data.size=32", "--config.sample.chips=40",
    "--config.train.epochs=1",
]  # fmt: skip


def test_wheel_trains_a_shipped_config_by_its_name(tmp_path):
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    for folder in ("planet_jax", "configs"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    work.mkdir()
    assert "planet-jax = planet_jax.main:cli" in next(site.rglob("entry_points.txt")).read_text()
    script = "import planet_jax.main as m; print(m.__file__, flush=True); m.cli()"
    ended = subprocess.run(
        [sys.executable, "-c", script, "train", "--config", "smoke", *SMALL], cwd=work,
        env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(site))
    assert (work / "runs" / "smoke" / "history.csv").exists()
