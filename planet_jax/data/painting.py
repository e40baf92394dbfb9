"""Paint Amazon-like chips, one layer for each tag.

Each tag has a method of the same name. As with real chips, a model must learn which colors and
textures go with which label.
"""

from collections.abc import Iterable

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float, UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

SIZE = 256  # pixels a side, about 3 m each

# Points, here and below, are complex numbers: x + iy, in pixels.
GRID = np.add.outer(1j * np.arange(SIZE), np.arange(SIZE)).astype(np.complex64)
_CYCLES = (
    np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]).astype(np.float32) * SIZE
)
_LAND = np.maximum(_CYCLES, 1.5) ** -1.7  # soils and clouds: detail at every scale
_CROWNS = np.exp(-(((_CYCLES - 36) / 24) ** 2))  # tree crowns about 7 pixels apart


def paint_chip(rng: np.random.Generator, tags: Iterable[str]) -> UInt8[np.ndarray, "256 256 3"]:
    """Paint a chip that shows exactly these tags; paint them in this order."""
    chip = _Chip(rng)
    for tag in tags:
        getattr(chip, tag)()
    light = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)  # brightness and white balance
    grain = rng.normal(0, 0.008, (SIZE, SIZE, 1))
    return (255 * np.clip(chip.rgb * light + grain, 0, 1)).astype(np.uint8)


def _noise(rng: np.random.Generator, spectrum: np.ndarray) -> Float[np.ndarray, "256 256"]:
    """Return periodic texture of zero mean and unit deviation."""
    waves = rng.standard_normal((2, *spectrum.shape), dtype=np.float32) * spectrum
    waves[:, 0, 0] = 0
    field = scipy.fft.irfft2(waves[0] + 1j * waves[1], (SIZE, SIZE))
    return field / field.std()


def _curve(rng: np.random.Generator, swing: float) -> Complex[np.ndarray, "100"]:
    """Return a curve across the whole chip that winds about `swing` pixels to either side."""
    along = np.linspace(-300, 300, 100)
    aside = np.sin(along / rng.uniform(25, 40) + rng.uniform(0, 6))
    aside += 0.4 * np.sin(along / rng.uniform(9, 14) + rng.uniform(0, 6))
    middle = rng.uniform(70, 186, 2) @ [1, 1j]
    return middle + (along + 1j * swing * aside) * np.exp(1j * rng.uniform(0, 2 * np.pi))


def _strokes(
    curves: Complex[np.ndarray, "k n"], widths: ArrayLike, blur: float = 0.7
) -> Float[np.ndarray, "256 256"]:
    """Return a mask of curves `widths` pixels wide; a curve of one point (n = 1) is a disc."""
    image = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(image)
    for curve, width in zip(curves, np.broadcast_to(widths, len(curves)).tolist(), strict=True):
        flat = np.stack([curve.real, curve.imag], axis=1).ravel().tolist()
        if len(curve) == 1:
            pen.circle(flat, width / 2, 255)
        else:
            pen.line(flat, 255, round(width), "curve")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255


class _Chip:
    """A chip being painted: rgb [256, 256, 3] in 0..1, and the shapes that its layers share."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.land = _noise(rng, _LAND)
        self.riverbed = _curve(rng, rng.uniform(12, 28))
        self.roadbed = _curve(rng, rng.uniform(0, 5))
        grid = np.add.outer([52, 128, 204], [52j, 128j, 204j]).ravel()
        self.places = list(rng.permutation(grid) + rng.normal(0, 4, (9, 2)) @ [1, 1j])
        self.rgb = np.zeros((SIZE, SIZE, 3), np.float32)
        self.paint(np.ones_like(self.land), rng.uniform((112, 118, 80), (136, 136, 92)))  # grass

    def paint(self, mask: np.ndarray, color: ArrayLike, uneven: float = 0.08) -> None:
        """Blend in a color (0..255), varied by the land's noise, by a mask [256, 256] in 0..1."""
        coat = np.asarray(color, np.float32) / 255 * (1 + uneven * self.land[..., None])
        self.rgb += mask[..., None] * (coat - self.rgb)

    def next_place(self) -> complex:
        """Return the least recently used place, so that features overlap as little as possible."""
        self.places.append(self.places.pop(0))
        return self.places[-1]

    def segment(self, curve: np.ndarray, half: int) -> np.ndarray:
        """Return a curve's point nearest to the next place, with `half` points on either side."""
        nearest = np.abs(curve - self.next_place()).argmin()
        return curve[max(nearest - half, 0) : nearest + half + 1]

    def shifted_land(self) -> np.ndarray:
        """Return the land's noise, shifted at random: a new outline without another FFT."""
        return np.roll(self.land, self.rng.integers(SIZE, size=2), axis=(0, 1))

    def patch(self, center: complex, radius: float, soft: float = 3) -> np.ndarray:
        """Return a mask [256, 256] of a ragged disc whose edge fades over `soft` pixels."""
        away = np.abs(GRID - np.complex64(center)) + 0.25 * radius * self.shifted_land()
        return np.clip((radius - away) / soft + 0.5, 0, 1)

    def primary(self) -> None:
        crowns = _noise(self.rng, _CROWNS)
        lit = 0.2 * crowns - 0.1 * np.roll(crowns, (1, 1), axis=(0, 1))  # shade behind each crown
        green = self.rng.uniform(0.85, 1.25) * self.rng.uniform((42, 62, 44), (52, 68, 52))
        self.paint(np.ones_like(lit), green * (1 + lit[..., None]), 0.12)

    def blooming(self) -> None:
        for color, count in (((214, 200, 92), 80), ((206, 146, 174), 50)):
            crowns = self.rng.uniform(0, SIZE, (count, 2)) @ [1, 1j]
            self.paint(_strokes(crowns[:, None], self.rng.uniform(3, 7, count), 1), color)

    def water(self) -> None:
        bed, width, muddy = self.riverbed[None], self.rng.uniform(18, 44), self.rng.random() < 0.5
        if muddy:
            self.paint(_strokes(bed, width + 7, 1.5), (166, 148, 120))  # sandy banks
        self.paint(_strokes(bed, width), (108, 92, 70) if muddy else (34, 46, 66), 0.04)

    def blow_down(self) -> None:
        place, wind = self.next_place(), np.exp(1j * self.rng.uniform(0, 2 * np.pi))
        self.paint(0.7 * self.patch(place, 50, 14), (128, 106, 92))
        fan = wind * np.exp(1j * self.rng.uniform(-0.6, 0.6, 260))
        feet = place - 45 * wind + fan * self.rng.uniform(10, 90, 260)
        trunks = np.stack([feet, feet + fan * self.rng.uniform(8, 18, 260)], axis=1)
        self.paint(_strokes(trunks, 1, 0.5), (220, 202, 180))

    def selective_logging(self) -> None:
        ahead = np.exp(1j * (np.arange(3) * np.pi / 3 + self.rng.uniform(0, 1, 3)))
        tracks = self.next_place() + np.outer(ahead, np.linspace(-64, 64, 20))
        tracks += (self.rng.normal(0, 1.8, (3, 20, 2)) @ [1, 1j]).cumsum(axis=1)
        self.paint(_strokes(tracks, 2), (168, 110, 80))
        gaps = tracks[:, ::2].ravel() + self.rng.normal(0, 4, (30, 2)) @ [1, 1j]
        self.paint(_strokes(gaps[:, None], self.rng.uniform(6, 11, 30), 1), (180, 108, 76))

    def agriculture(self) -> None:
        places = [self.next_place() for _ in range(self.rng.integers(2, 5))]
        pasture = np.max([self.patch(place, 58, 10) for place in places], axis=0)
        self.paint(pasture, (94, 110, 68))
        turn = np.exp(-1j * self.rng.uniform(0, np.pi))  # all fields are aligned
        for place in places:
            field = (GRID - np.complex64(place)) * np.complex64(turn)
            half, furrow = self.rng.uniform(32, 46, 2), self.rng.uniform(7, 11)
            edge = np.minimum(half[0] - np.abs(field.real), half[1] - np.abs(field.imag))
            crop = self.rng.choice([(116, 136, 80), (160, 150, 102), (138, 114, 88)])
            rows = 1 + 0.14 * np.sin(field.real * np.float32(2 * np.pi / furrow))
            self.paint(np.clip(edge / 2, 0, 1), crop * rows[..., None])

    def cultivation(self) -> None:
        place = self.next_place()
        seeds = place + self.rng.uniform(-56, 56, (36, 2)) @ [1, 1j]
        plot = np.argmin([np.abs(GRID - np.complex64(seed)) for seed in seeds], axis=0)
        crops = [(134, 154, 84), (154, 110, 88), (66, 86, 54), (176, 152, 118)]
        self.paint(self.patch(place, 48, 5), self.rng.choice(crops, 36)[plot], 0.12)

    def slash_burn(self) -> None:
        place, wind = self.next_place(), np.exp(1j * self.rng.uniform(0, 2 * np.pi))
        self.paint(self.patch(place, 48), (36, 27, 30), 0.3)
        drift = np.arange(0, 100, 5)
        thinning = np.clip(0.9 - np.abs(GRID - place) / 130 + 0.1 * self.shifted_land(), 0, 1)
        plume = _strokes((place + wind * drift)[:, None], 10 + drift / 2, 5)
        self.paint(plume * thinning, (168, 178, 194), 0)

    def bare_ground(self) -> None:
        self.paint(self.patch(self.next_place(), 48), (210, 194, 184))

    def road(self) -> None:
        for road in (self.roadbed, _curve(self.rng, 3))[: self.rng.integers(1, 3)]:
            self.paint(_strokes(road[None], self.rng.uniform(4, 7)), (196, 164, 130))

    def artisinal_mine(self) -> None:
        pits = np.max([self.patch(at, 29) for at in self.segment(self.riverbed, 8)[::4]], axis=0)
        self.paint(pits, (212, 168, 100), 0.12)
        fine = np.tile(self.land[::4, ::4], (4, 4))  # the land's noise at a quarter of its scale
        for pond, level in (((146, 150, 100), fine), ((168, 118, 66), -fine)):
            self.paint(pits * np.clip(3 * level - 2, 0, 1), pond)

    def conventional_mine(self) -> None:
        away, stretch = GRID - np.complex64(self.next_place()), self.rng.uniform(0.8, 1.25)
        depth = np.hypot(away.real * stretch, away.imag / stretch) + 2.5 * self.shifted_land()
        terraces = 146 + 36 * np.sin(depth * (2 * np.pi / 12))
        self.paint(np.clip((52 - depth) / 3, 0, 1), terraces[..., None] * [1, 0.98, 0.97])
        self.paint(np.clip((16 - depth) / 2, 0, 1), (78, 122, 132))  # the flooded bottom

    def habitation(self) -> None:
        homes = self.rng.choice(self.segment(self.roadbed, 9), 36)
        homes += self.rng.normal(0, 8, (36, 2)) @ [1, 1j]
        self.paint(0.7 * _strokes(homes[:, None], 18, 3), (154, 134, 110))  # bare yards
        for i, roof in enumerate([(240, 240, 244), (200, 104, 80), (160, 184, 212)]):
            self.paint(_strokes(homes[i::3, None], 6, 0.5), roof)

    def clear(self) -> None:
        """Paint nothing: a clear sky."""

    def haze(self) -> None:
        self.paint(self.rng.uniform(0.48, 0.6) + 0.03 * self.shifted_land(), (194, 202, 210), 0)

    def partly_cloudy(self) -> None:
        rise = 0.6 * _noise(self.rng, _LAND) - 1.1
        for _ in range(self.rng.integers(2, 5)):
            width = self.rng.uniform(20, 34)
            rise += 2.4 * np.exp(
                -((np.abs(GRID - np.complex64(self.next_place())) / width) ** 2) / 2
            )
        cloud = np.clip(0.8 * rise, 0, 1)
        down, right = self.rng.integers(14, 24, 2)  # the sun is in the north-west
        self.paint(0.6 * np.pad(cloud, ((down, 0), (right, 0)))[:SIZE, :SIZE], (12, 18, 28))
        self.paint(cloud, (242, 242, 246), 0.03)

    def cloudy(self) -> None:
        cover = np.clip(0.97 + 0.03 * self.shifted_land(), 0, 1)
        self.paint(cover, self.rng.uniform(200, 230), 0.06)
