"""Test the search for near duplicates on drawn textures."""

import numpy as np
import pytest

from planet_jax.data import duplicates
from planet_jax.data.augment import Augmentation, render
from planet_jax.data.duplicates import near_duplicates, shrink, similarity, symmetries


def textures(rng, n, side=128):
    """Draw chips with amplitudes that fall as 1 / frequency, as those of natural images do."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = np.inf
    waves = np.fft.fft2(rng.standard_normal((n, side, side))) / frequency
    gray = np.fft.ifft2(waves).real
    gray *= 40 / gray.std((1, 2), keepdims=True)
    return np.clip(128 + gray[..., None] * [1, 0.8, 0.6], 0, 255).astype(np.uint8)


def turned(chips, view):
    """Apply one of the square's symmetries by the loader's own code."""
    n = len(chips)
    neutral = (np.zeros(n), np.ones(n), np.zeros(n), np.zeros(n), np.full(n, 0.5), np.ones(n))
    return render(chips, Augmentation(np.full(n, view), *neutral), chips.shape[1])


class Encoded:
    """Chips that are no array, as those of data.decoded = False."""

    def __init__(self, pixels):
        self.pixels, self.shape = pixels, pixels.shape

    def __getitem__(self, rows):
        return self.pixels[rows]


@pytest.mark.parametrize("wrap", [np.asarray, Encoded])
def test_copies_in_every_symmetry_are_found_and_nothing_else(wrap):
    rng = np.random.default_rng(0)
    chips = textures(rng, 280)
    for view in range(8):  # rows 0 to 7 repeat rows 100 to 107: noise, lighting
        copy = turned(chips[[100 + view]], view)[0] * 0.9 + 12 + rng.normal(0, 5, (128, 128, 3))
        chips[view] = np.clip(copy, 0, 255)
    valid, train = rng.permutation(80), 80 + rng.permutation(200)
    found = near_duplicates(wrap(chips), valid, train, threads=0)
    assert {(pair.valid, pair.train) for pair in found} == {(i, 100 + i) for i in range(8)}
    similarities = [pair.similarity for pair in found]
    assert similarities == sorted(similarities, reverse=True)
    assert 0.9 < similarities[-1] < similarities[0] < 1


def test_a_shared_coast_or_plain_color_is_not_a_copy():
    """Coarse spectra of such chips correlate; the detail in their windows does not."""
    rng = np.random.default_rng(1)
    coast = np.where(np.arange(128) < 70, 60, 190)[:, None, None]
    coasts = np.clip(coast + rng.normal(0, 6, (20, 128, 128, 3)), 0, 255).astype(np.uint8)
    plain = np.full((20, 128, 128, 3), 90, np.uint8)
    water = np.clip(90 + rng.normal(0, 3, (20, 128, 128, 3)), 0, 255).astype(np.uint8)
    chips, rows = np.concatenate([coasts, plain, water]), np.arange(60)
    small = shrink(chips[:20], 16)
    assert (duplicates.spectra(small[:1]) @ duplicates.spectra(small[1:]).T > 0.95).all()
    assert near_duplicates(chips, rows[::2], rows[1::2]) == []


def test_an_exact_copy_has_similarity_1_even_if_half_of_it_has_no_data():
    chip = shrink(textures(np.random.default_rng(2), 1), 64)
    chip[:, 32:] = 0
    assert similarity(chip, chip) == pytest.approx(1)
    assert similarity(chip, np.zeros_like(chip)) == 0


@pytest.mark.parametrize("shape", [(64, 64), (100, 75), (32, 200)])
def test_cells_are_sums_of_equal_blocks(shape):
    chips = np.random.default_rng(3).integers(0, 256, (2, *shape, 3), np.uint8)
    small = shrink(chips, 16)
    high, wide = (-(-side // 16) for side in shape)
    n = small.shape[1]
    assert small.shape == (2, n, n)
    top, left = (shape[0] - n * high) // 2, (shape[1] - n * wide) // 2
    block = chips[1, top + 2 * high : top + 3 * high, left + 5 * wide : left + 6 * wide]
    assert small[1, 2, 5] == block.sum(dtype=int)
    for view, image in enumerate(symmetries(small)):
        if shape == (64, 64):
            np.testing.assert_array_equal(image, shrink(turned(chips, view), 16))
