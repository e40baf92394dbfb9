"""The embedded data set: Amazon-like chips drawn by code, in the competition's own layout.

A chip is painted from its tags alone, each by one small method of the tag's name, so a model learns
here what it must learn from real chips: which colours and textures go with which label.
"""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from planet_jax.runtime.errors import BadInput

SIZE = 256  # pixels a side, about 3 m each
CSV, FOLDERS = "train_v2.csv", ("train-jpg", "test-jpg")

WEATHER = {"clear": 0.70, "partly_cloudy": 0.18, "haze": 0.067, "cloudy": 0.053}
# The other tags from the ground up, as they are drawn and painted: chance, and chance beside a tag
# that makes it likelier. Common tags keep about their real share; those rarer than 1 in 50 (down
# to 1 in 400) are raised, so that a few hundred chips hold several of each.
TAGS: dict[str, tuple[float, dict[str, float]]] = {
    "primary": (0.97, {}),
    "blooming": (0.0, {"primary": 0.03}),
    "water": (0.17, {}),
    "blow_down": (0.0, {"primary": 0.03}),
    "selective_logging": (0.0, {"primary": 0.03}),
    "agriculture": (0.31, {}),
    "cultivation": (0.04, {"agriculture": 0.26}),
    "slash_burn": (0.015, {"agriculture": 0.04, "cultivation": 0.12}),
    "bare_ground": (0.025, {"water": 0.04}),
    "road": (0.07, {"agriculture": 0.47, "selective_logging": 0.4, "bare_ground": 0.35}),
    "artisinal_mine": (0.005, {"water": 0.15}),
    "conventional_mine": (0.02, {"road": 0.06}),
    "habitation": (0.01, {"agriculture": 0.05, "road": 0.35}),
}

# Points, here and below, are complex numbers: x + iy, in pixels.
HERE = np.add.outer(1j * np.arange(SIZE), np.arange(SIZE)).astype(np.complex64)
_CYCLES = (
    np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]).astype(np.float32) * SIZE
)
_LAND = np.maximum(_CYCLES, 1.5) ** -1.7  # soils and clouds: detail at every scale
_CROWNS = np.exp(-(((_CYCLES - 36) / 24) ** 2))  # tree crowns about 7 pixels apart


def _noise(rng: np.random.Generator, spectrum: np.ndarray) -> np.ndarray:
    """Texture [256,256] of zero mean and unit deviation; it wraps around."""
    waves = rng.standard_normal((2, *spectrum.shape), dtype=np.float32) * spectrum
    waves[:, 0, 0] = 0
    field = scipy.fft.irfft2(waves[0] + 1j * waves[1], (SIZE, SIZE))
    return field / field.std()


def _way(rng: np.random.Generator, swing: float) -> np.ndarray:
    """A winding way [100] across the whole chip, `swing` pixels to either side of straight."""
    along = np.linspace(-300, 300, 100)
    aside = np.sin(along / rng.uniform(25, 40) + rng.uniform(0, 6))
    aside += 0.4 * np.sin(along / rng.uniform(9, 14) + rng.uniform(0, 6))
    middle = rng.uniform(70, 186, 2) @ [1, 1j]
    return middle + (along + 1j * swing * aside) * np.exp(1j * rng.uniform(0, 2 * np.pi))


def _strokes(ways: np.ndarray, widths: ArrayLike, blur: float = 0.7) -> np.ndarray:
    """Mask [256,256] of ways [k,n], `widths` pixels wide; a way of one point [k,1] is a disc."""
    image = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(image)
    for way, width in zip(ways, np.broadcast_to(widths, len(ways)).tolist(), strict=True):
        flat = np.stack([way.real, way.imag], axis=1).ravel().tolist()
        if len(way) == 1:
            pen.circle(flat, width / 2, 255)
        else:
            pen.line(flat, 255, round(width), "curve")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255


class _Chip:
    """A chip being painted: rgb [256,256,3] in 0..1, and what the painters share."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.land = _noise(rng, _LAND)
        self.riverbed, self.roadbed = _way(rng, rng.uniform(12, 28)), _way(rng, rng.uniform(0, 5))
        grid = np.add.outer([52, 128, 204], [52j, 128j, 204j]).ravel()
        self.places = list(rng.permutation(grid) + rng.normal(0, 4, (9, 2)) @ [1, 1j])
        self.rgb = np.zeros((SIZE, SIZE, 3), np.float32)
        self.paint(np.ones_like(self.land), rng.uniform((112, 118, 80), (136, 136, 92)))  # grass

    def paint(self, mask: np.ndarray, colour: ArrayLike, uneven: float = 0.08) -> None:
        """Covers by mask [256,256] in 0..1 with a colour in 0..255, uneven as the land is."""
        coat = np.asarray(colour, np.float32) / 255 * (1 + uneven * self.land[..., None])
        self.rgb += mask[..., None] * (coat - self.rgb)

    def place(self) -> complex:
        """The place longest unused: features and clouds keep apart while there is room."""
        self.places.append(self.places.pop(0))
        return self.places[-1]

    def reach(self, way: np.ndarray, half: int) -> np.ndarray:
        """The reach of a way that passes nearest to a place, `half` points to either side."""
        nearest = np.abs(way - self.place()).argmin()
        return way[max(nearest - half, 0) : nearest + half + 1]

    def rough(self) -> np.ndarray:
        """The land's noise from elsewhere: fresh enough for an outline, and it costs no FFT."""
        return np.roll(self.land, self.rng.integers(SIZE, size=2), axis=(0, 1))

    def patch(self, centre: complex, radius: float, soft: float = 3) -> np.ndarray:
        """Mask [256,256] of a ragged disc whose edge fades over `soft` pixels."""
        away = np.abs(HERE - np.complex64(centre)) + 0.25 * radius * self.rough()
        return np.clip((radius - away) / soft + 0.5, 0, 1)

    def primary(self) -> None:
        crowns = _noise(self.rng, _CROWNS)
        lit = 0.2 * crowns - 0.1 * np.roll(crowns, (1, 1), axis=(0, 1))  # shade behind each crown
        green = self.rng.uniform(0.85, 1.25) * self.rng.uniform((42, 62, 44), (52, 68, 52))
        self.paint(np.ones_like(lit), green * (1 + lit[..., None]), 0.12)

    def blooming(self) -> None:
        for colour, count in (((214, 200, 92), 80), ((206, 146, 174), 50)):
            crowns = self.rng.uniform(0, SIZE, (count, 2)) @ [1, 1j]
            self.paint(_strokes(crowns[:, None], self.rng.uniform(3, 7, count), 1), colour)

    def water(self) -> None:
        bed, width, muddy = self.riverbed[None], self.rng.uniform(18, 44), self.rng.random() < 0.5
        if muddy:
            self.paint(_strokes(bed, width + 7, 1.5), (166, 148, 120))  # its sandy banks
        self.paint(_strokes(bed, width), (108, 92, 70) if muddy else (34, 46, 66), 0.04)

    def blow_down(self) -> None:
        place, wind = self.place(), np.exp(1j * self.rng.uniform(0, 2 * np.pi))
        self.paint(0.7 * self.patch(place, 50, 14), (128, 106, 92))
        fan = wind * np.exp(1j * self.rng.uniform(-0.6, 0.6, 260))
        feet = place - 45 * wind + fan * self.rng.uniform(10, 90, 260)
        trunks = np.stack([feet, feet + fan * self.rng.uniform(8, 18, 260)], axis=1)
        self.paint(_strokes(trunks, 1, 0.5), (220, 202, 180))

    def selective_logging(self) -> None:
        ahead = np.exp(1j * (np.arange(3) * np.pi / 3 + self.rng.uniform(0, 1, 3)))
        tracks = self.place() + np.outer(ahead, np.linspace(-64, 64, 20))
        tracks += (self.rng.normal(0, 1.8, (3, 20, 2)) @ [1, 1j]).cumsum(axis=1)
        self.paint(_strokes(tracks, 2), (168, 110, 80))
        gaps = tracks[:, ::2].ravel() + self.rng.normal(0, 4, (30, 2)) @ [1, 1j]
        self.paint(_strokes(gaps[:, None], self.rng.uniform(6, 11, 30), 1), (180, 108, 76))

    def agriculture(self) -> None:
        places = [self.place() for _ in range(self.rng.integers(2, 5))]
        pasture = np.max([self.patch(place, 58, 10) for place in places], axis=0)
        self.paint(pasture, (94, 110, 68))
        turn = np.exp(-1j * self.rng.uniform(0, np.pi))  # all fields lie along one road or fence
        for place in places:
            field = (HERE - np.complex64(place)) * np.complex64(turn)
            half, furrow = self.rng.uniform(32, 46, 2), self.rng.uniform(7, 11)
            edge = np.minimum(half[0] - np.abs(field.real), half[1] - np.abs(field.imag))
            crop = self.rng.choice([(116, 136, 80), (160, 150, 102), (138, 114, 88)])
            rows = 1 + 0.14 * np.sin(field.real * np.float32(2 * np.pi / furrow))
            self.paint(np.clip(edge / 2, 0, 1), crop * rows[..., None])

    def cultivation(self) -> None:
        place = self.place()
        seeds = place + self.rng.uniform(-56, 56, (36, 2)) @ [1, 1j]
        plot = np.argmin([np.abs(HERE - np.complex64(seed)) for seed in seeds], axis=0)
        crops = [(134, 154, 84), (154, 110, 88), (66, 86, 54), (176, 152, 118)]
        self.paint(self.patch(place, 48, 5), self.rng.choice(crops, 36)[plot], 0.12)

    def slash_burn(self) -> None:
        place, wind = self.place(), np.exp(1j * self.rng.uniform(0, 2 * np.pi))
        self.paint(self.patch(place, 48), (36, 27, 30), 0.3)
        drift = np.arange(0, 100, 5)
        thinning = np.clip(0.9 - np.abs(HERE - place) / 130 + 0.1 * self.rough(), 0, 1)
        plume = _strokes((place + wind * drift)[:, None], 10 + drift / 2, 5)
        self.paint(plume * thinning, (168, 178, 194), 0)

    def bare_ground(self) -> None:
        self.paint(self.patch(self.place(), 48), (210, 194, 184))

    def road(self) -> None:
        for way in (self.roadbed, _way(self.rng, 3))[: self.rng.integers(1, 3)]:
            self.paint(_strokes(way[None], self.rng.uniform(4, 7)), (196, 164, 130))

    def artisinal_mine(self) -> None:
        pits = np.max([self.patch(at, 29) for at in self.reach(self.riverbed, 8)[::4]], axis=0)
        self.paint(pits, (212, 168, 100), 0.12)
        fine = np.tile(self.land[::4, ::4], (4, 4))  # the land's noise at a quarter of its scale
        for pond, level in (((146, 150, 100), fine), ((168, 118, 66), -fine)):
            self.paint(pits * np.clip(3 * level - 2, 0, 1), pond)

    def conventional_mine(self) -> None:
        away, stretch = HERE - np.complex64(self.place()), self.rng.uniform(0.8, 1.25)
        depth = np.hypot(away.real * stretch, away.imag / stretch) + 2.5 * self.rough()
        terraces = 146 + 36 * np.sin(depth * (2 * np.pi / 12))
        self.paint(np.clip((52 - depth) / 3, 0, 1), terraces[..., None] * [1, 0.98, 0.97])
        self.paint(np.clip((16 - depth) / 2, 0, 1), (78, 122, 132))  # the flooded bottom

    def habitation(self) -> None:
        homes = self.rng.choice(self.reach(self.roadbed, 9), 36)
        homes += self.rng.normal(0, 8, (36, 2)) @ [1, 1j]
        self.paint(0.7 * _strokes(homes[:, None], 18, 3), (154, 134, 110))  # trodden yards
        for i, roof in enumerate([(240, 240, 244), (200, 104, 80), (160, 184, 212)]):
            self.paint(_strokes(homes[i::3, None], 6, 0.5), roof)

    def haze(self) -> None:
        self.paint(self.rng.uniform(0.48, 0.6) + 0.03 * self.rough(), (194, 202, 210), 0)

    def partly_cloudy(self) -> None:
        rise = 0.6 * _noise(self.rng, _LAND) - 1.1
        for _ in range(self.rng.integers(2, 5)):
            width = self.rng.uniform(20, 34)
            rise += 2.4 * np.exp(-((np.abs(HERE - np.complex64(self.place())) / width) ** 2) / 2)
        cloud = np.clip(0.8 * rise, 0, 1)
        down, right = self.rng.integers(14, 24, 2)  # the sun stands in the north-west
        self.paint(0.6 * np.pad(cloud, ((down, 0), (right, 0)))[:SIZE, :SIZE], (12, 18, 28))
        self.paint(cloud, (242, 242, 246), 0.03)

    def cloudy(self) -> None:
        self.paint(np.clip(0.97 + 0.03 * self.rough(), 0, 1), self.rng.uniform(200, 230), 0.06)


def draw_tags(rng: np.random.Generator) -> tuple[str, ...]:
    """One chip's tags, sorted, by the data's rules: one weather tag, and `cloudy` stands alone."""
    weather = str(rng.choice(list(WEATHER), p=list(WEATHER.values())))
    tags = {weather}
    for tag, (chance, beside) in TAGS.items() if weather != "cloudy" else ():
        if rng.random() < max(chance, *(beside.get(other, 0) for other in tags)):
            tags.add(tag)
    return tuple(sorted(tags))


def draw_chip(rng: np.random.Generator, tags: tuple[str, ...]) -> np.ndarray:
    """A chip uint8 [256,256,3] that shows these tags and no other."""
    chip = _Chip(rng)
    for tag in (*TAGS, *WEATHER):
        if tag in tags and tag != "clear":  # a clear sky paints nothing
            getattr(chip, tag)()
    light = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)  # brightness and white balance
    grain = rng.normal(0, 0.008, (SIZE, SIZE, 1))
    return (255 * np.clip(chip.rgb * light + grain, 0, 1)).astype(np.uint8)


def encode(rgb: np.ndarray) -> bytes:
    """The JPEG of a chip uint8 [H,W,3] as the competition has it: C, M, Y of 255 - rgb, K of 0."""
    ink = np.concatenate([255 - rgb, np.zeros_like(rgb[..., :1])], axis=-1)
    jpeg = io.BytesIO()
    Image.fromarray(ink, "CMYK").save(jpeg, "JPEG")
    # The competition's chips lack the Adobe marker that Pillow writes and some readers heed.
    before, _, after = jpeg.getvalue().partition(b"\xff\xee\x00\x0eAdobe")
    return before + after[7:]


def draw_sample(
    root: Path,
    chips: int,
    test_chips: int,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Writes root/train_v2.csv, root/train-jpg/train_0.jpg ..., root/test-jpg/test_0.jpg ...

    Chip i of a split depends on (seed, split, i) alone, so a larger sample holds the smaller one.
    The label file comes last: where it is, the sample is whole. progress takes (what, done, total).

    Raises:
      BadInput: root already holds a label file or chips; nothing is touched.
    """
    draft = root / ".drawing"
    _clear_draft(root, draft)
    for name in (CSV, *FOLDERS):
        if (root / name).is_file() or any((root / name).glob("*")):
            raise BadInput(f"{root / name} is there already; draw the sample elsewhere")
    rows = []
    for split, (folder, count) in enumerate(zip(FOLDERS, (chips, test_chips), strict=True)):
        (draft / folder).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng([seed, split, i])
            tags, name = draw_tags(rng), f"{folder.removesuffix('-jpg')}_{i}"
            (draft / folder / f"{name}.jpg").write_bytes(encode(draw_chip(rng, tags)))
            rows.append((name, " ".join(tags)))
            progress("drawing", len(rows), chips + test_chips)
    labels = pd.DataFrame(rows[:chips], columns=["image_name", "tags"])
    labels.to_csv(draft / CSV, index=False)
    for name in (*FOLDERS, CSV):
        (draft / name).rename(root / name)
    draft.rmdir()


def _clear_draft(root: Path, draft: Path) -> None:
    """Takes away what a killed run left, and nothing else."""
    if (draft / CSV).exists():  # killed between the last renames: what has left the draft is ours
        for folder in FOLDERS:
            if not (draft / folder).exists():
                shutil.rmtree(root / folder, ignore_errors=True)
        (draft / CSV).unlink()
    shutil.rmtree(draft, ignore_errors=True)
