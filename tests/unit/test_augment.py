import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_jax.data.augment import Augmentation, draw, render
from tests.support import needs_shared

NEUTRAL = {
    "dihedral": 0, "degrees": 0.0, "zoom": 1.0, "row_pct": 0.5, "col_pct": 0.5,
    "brightness": 0.5, "contrast": 1.0,
}  # fmt: skip
CASES = {
    **{f"dihedral_{k}": ({"dihedral": k}, 256) for k in range(8)},
    "brightness_0.47": ({"brightness": 0.47}, 256),
    "brightness_0.53": ({"brightness": 0.53}, 256),
    "contrast_0.92": ({"contrast": 0.92}, 256),
    "zoom_1.03_centre": ({"zoom": 1.03}, 256),
    "rotate_7": ({"degrees": 7.0}, 256),
}
SHORT = {
    "k": "dihedral", "deg": "degrees", "sc": "zoom", "r": "row_pct", "c": "col_pct",
    "br": "brightness", "co": "contrast",
}  # fmt: skip


def one(**parameters):
    return Augmentation(**{k: np.array([v]) for k, v in (NEUTRAL | parameters).items()})


def check(rendered, expected):
    """Compare uint8 levels with fastai's floats.

    The difference has three parts: rounding to uint8 (half a level), the lighting table's quarter
    levels, and the reference's float16 (steps of an eighth of a level).
    """
    expected = expected.astype(np.float64) * (1 if expected.dtype == np.uint8 else 255)
    off = np.abs(rendered - expected)
    assert off.max() < 1.0
    assert off.mean() < 0.3


@needs_shared
@pytest.mark.parametrize("name", CASES)
def test_each_transform_matches_fastai(arrays, name):
    parameters, size = CASES[name]
    check(render(arrays["image_u8"][None], one(**parameters), size)[0], arrays[name])


@needs_shared
@pytest.mark.parametrize("size", [128, 256])
def test_composition_and_validation_match_fastai(arrays, reference, size):
    chip = arrays["image_u8"][None]
    check(render(chip, None, size)[0], arrays[f"valid_{size}"])
    for case, short in reference["composed_cases"].items():
        parameters = {SHORT[name]: value for name, value in short.items()}
        check(render(chip, one(**parameters), size)[0], arrays[f"composed_{case}_{size}"])


def render_in_float64(chip, augmentation, size):
    """Render by fastai's rule, written out in float64 without tables or integers."""
    height, width, _ = chip.shape
    k, angle = int(augmentation.dihedral[0]), np.deg2rad(augmentation.degrees[0])
    x, y = (-1 if k & 1 else 1), (-1 if k & 2 else 1)
    d = np.array([[0, x, 0], [y, 0, 0], [0, 0, 1]] if k & 4 else np.diag([x, y, 1]))
    r = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    s, row, col = (getattr(augmentation, n)[0] for n in ("zoom", "row_pct", "col_pct"))
    z = np.array(
        [
            [1 / s, 0, (1 - 1 / s) * (2 * col - 1)],
            [0, 1 / s, (1 - 1 / s) * (2 * row - 1)],
            [0, 0, 1],
        ]
    )
    grid = np.linspace(-1, 1, size)
    points = np.stack([*np.meshgrid(grid, grid), np.ones((size, size))], -1) @ (d @ r @ z).T
    source = chip.astype(np.float64) / 255
    shrink = min(height, width) / size / 2
    span = points[..., :2].max() - points[..., :2].min()
    if shrink > 1 and shrink > 2 / span:
        source = shrink_by_area(source, int(height / shrink), int(width / shrink))
        height, width, _ = source.shape

    def reflect(i, n):
        i = np.abs(i) % (2 * (n - 1))
        return np.where(i < n, i, 2 * (n - 1) - i)

    px, py = (points[..., 0] + 1) / 2 * (width - 1), (points[..., 1] + 1) / 2 * (height - 1)
    left, top = np.floor(px).astype(int), np.floor(py).astype(int)
    value = 0
    for dy in (0, 1):
        for dx in (0, 1):
            share = (1 - np.abs(px - left - dx)) * (1 - np.abs(py - top - dy))
            pixel = source[reflect(top + dy, height), reflect(left + dx, width)]
            value = value + share[..., None] * pixel
    p = value.clip(1e-7, 1 - 1e-7)
    change = augmentation.brightness[0]
    logit = (np.log(p / (1 - p)) + np.log(change / (1 - change))) * augmentation.contrast[0]
    return 255 / (1 + np.exp(-logit))


def shrink_by_area(image, height, width):
    out = np.empty((height, width, 3))
    for i in range(height):
        for j in range(width):
            rows = slice(i * len(image) // height, -(-(i + 1) * len(image) // height))
            columns = slice(j * image.shape[1] // width, -(-(j + 1) * image.shape[1] // width))
            out[i, j] = image[rows, columns].mean((0, 1))
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    size=st.integers(8, 60),
    max_degrees=st.sampled_from([10.0, 45.0, 180.0]),
    max_zoom=st.sampled_from([1.05, 1.5, 4.0]),
)
def test_any_draw_at_any_size_follows_the_rule(seed, height, width, size, max_degrees, max_zoom):
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    chip = render(smooth[None], None, 128)[0][:height, :width]
    drawn = draw(rng, 1, max_degrees=max_degrees, max_zoom=max_zoom, p=0.9)
    off = np.abs(render(chip[None], drawn, size)[0] - render_in_float64(chip, drawn, size))
    assert off.max() < 1.5  # more than in `check`: dark and bright levels are steep in logit space
    assert off.mean() < 0.35


def test_draws_have_fastais_distributions():
    n = 20_000
    drawn = draw(np.random.default_rng(3), n)
    for name, neutral in (("degrees", 0), ("zoom", 1), ("brightness", 0.5), ("contrast", 1)):
        assert (getattr(drawn, name) != neutral).mean() == pytest.approx(0.75, abs=0.015)
    counts = np.bincount(drawn.dihedral, minlength=8)
    assert ((counts - n / 8) ** 2 / (n / 8)).sum() < 24.3  # chi-square, 7 degrees, p = 0.001
    applied = {name: values[values != NEUTRAL[name]] for name, values in vars(drawn).items()}
    spreads = {
        "degrees": 20 / 12**0.5, "zoom": 0.05 / 12**0.5, "brightness": 0.1 / 12**0.5,
        "row_pct": 1 / 12**0.5, "col_pct": 1 / 12**0.5,
    }  # fmt: skip
    for name, spread in spreads.items():
        assert applied[name].std() == pytest.approx(spread, rel=0.03)
    logs = np.log(applied["contrast"])
    assert logs.std() == pytest.approx(2 * -np.log(0.9) / 12**0.5, rel=0.03)
    assert -logs.min() == pytest.approx(-np.log(0.9), rel=1e-3)
    assert logs.max() == pytest.approx(-np.log(0.9), rel=1e-3)


def test_rendering_does_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    chips = rng.integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    drawn = draw(rng, 5)
    together = render(chips, drawn, 24)
    for i in range(5):
        alone = render(chips[i : i + 1], drawn[np.array([i])], 24)
        np.testing.assert_array_equal(alone[0], together[i])
