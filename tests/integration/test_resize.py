"""Test the export's resize of chips of another size."""

import jax
import numpy as np
import pytest

from planet_jax.data.augment import render
from planet_jax.results.export.function import resize


@pytest.mark.parametrize("size", [32, 49, 128, 224])
def test_resize_leaves_chips_of_the_right_size(size):
    chip = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    np.testing.assert_array_equal(jax.jit(resize, static_argnums=1)(chip, size), chip)


RANDOM_SIZES = [
    (int(rng.choice([32, 49, 96, 128, 224, 256])), *rng.integers(1, 1025, 2).tolist())
    for rng in map(np.random.default_rng, range(12))
]


@pytest.mark.parametrize(
    ("size", "height", "width"),
    [
        (32, 64, 64), (64, 33, 47), (32, 65, 70), (49, 99, 1024), (49, 1, 2), (49, 1024, 1024),
        # Here validation's int(side / shrink) is one less than the exact quotient.
        (49, 106, 106), (224, 450, 450),
        *RANDOM_SIZES,
    ],
)  # fmt: skip
def test_resize_is_within_two_levels_of_validations(size, height, width):
    chips = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    ours = jax.jit(resize, static_argnums=1)(chips[0], size).astype(int)
    assert np.abs(ours - render(chips, None, size)[0]).max() <= 2
