"""Find the image file of a chip by name, with any image ending."""

import os
import unicodedata
from collections import Counter
from os.path import splitext
from pathlib import Path

from planet_jax.runtime.errors import BadInput

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})


def is_image(name: str) -> bool:
    """Return whether a file name has an image ending (in any case) and no `._`, macOS's prefix."""
    return splitext(name)[1].lower() in IMAGE_ENDINGS and not name.startswith("._")


def stem(name: str) -> str:
    """Return a chip's name in Unicode's composed form (NFC), without an image ending."""
    name = unicodedata.normalize("NFC", name)
    before, ending = splitext(name)
    return before if ending.lower() in IMAGE_ENDINGS else name


class ChipFinder:
    """Find images below a base folder by name; each folder is listed once, when first used."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.entries: Counter[str] = Counter()  # number of entries in each listed folder
        self._folders: dict[str, Path] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> list[Path]:
        """Return the files of a chip: one, none, or several that differ in their ending.

        The name may include an ending and a folder below the base, as in `cat/001`.

        Raises:
          BadInput: the folder cannot be listed.
        """
        folder, _, last = name.rpartition("/")
        if folder not in self._stems:
            self._list(folder)
        stems = self._stems[folder]
        # The file of the chip `a.png` may be `a.png.jpg`: try the whole name first.
        files = stems.get(unicodedata.normalize("NFC", last)) or stems.get(stem(last), [])
        return [self._folders[folder] / file for file in files]

    def ending(self) -> str:
        """Return the most common ending of the listed images."""
        endings = Counter(
            splitext(file)[1]
            for stems in self._stems.values()
            for files in stems.values()
            for file in files
        )
        return endings.most_common(1)[0][0] if endings else ".jpg"

    def _list(self, folder: str) -> None:
        path = self.base / folder
        try:
            names = sorted(entry.name for entry in os.scandir(path))
        except OSError as error:
            raise BadInput(
                f"{path}: cannot list the chips ({error.strerror}); set config.data.chip_folder "
                "to their folder in data.root"
            ) from None
        self.entries[folder] = len(names)
        self._folders[folder], self._stems[folder] = path, {}
        for name in filter(is_image, names):
            self._stems[folder].setdefault(stem(name), []).append(name)
