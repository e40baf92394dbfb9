import os

import jaxlib
import pytest

from planet_jax import backend

OWN = "--xla_cpu_experimental_ynn_fusion_type="


@pytest.mark.parametrize(
    ("flags", "version", "expected"),
    [
        ("", "0.10.2", backend.EIGEN_CONVOLUTIONS),
        ("--a=1", "0.10.2", f"--a=1 {backend.EIGEN_CONVOLUTIONS}"),
        (f"{OWN} --a=1", "0.10.2", f"{OWN} --a=1"),
        ("--a=1", "0.10.3", "--a=1"),
    ],
)
def test_convolutions_are_eigens_unless_the_user_chose(flags, version, expected, monkeypatch):
    """The flag is set only for versions that know it: XLA ends the process at an unknown flag."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jaxlib, "__version__", version)
    backend.use_eigen_convolutions()
    assert os.environ["XLA_FLAGS"] == expected
