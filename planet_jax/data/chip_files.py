"""Find the image files of chips by name, whatever their ending."""

import os
import unicodedata
from collections import Counter
from os.path import splitext
from pathlib import Path

from planet_jax.runtime.errors import BadInput

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})


def is_image(name: str) -> bool:
    """Return whether a file's name ends as an image's, in any case; macOS's `._a.jpg` is none."""
    return splitext(name)[1].lower() in IMAGE_ENDINGS and not name.startswith("._")


def stem(name: str) -> str:
    """Return a chip's name in Unicode's composed form (NFC), without an image's ending."""
    name = unicodedata.normalize("NFC", name)
    before, ending = splitext(name)
    return before if ending.lower() in IMAGE_ENDINGS else name


class ChipFinder:
    """The images of a folder by name; each folder is listed once, when first used."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.entries: Counter[str] = Counter()  # files of each folder that was listed
        self._folders: dict[str, Path] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> list[Path]:
        """Return the files of a chip: one, none, or several that differ in their ending.

        The name may have an ending, and a folder below the base: `cat/001`.

        Raises:
          BadInput: the folder cannot be listed.
        """
        folder, _, last = name.rpartition("/")
        if folder not in self._stems:
            self._list(folder)
        stems = self._stems[folder]
        # A chip may be named `a.png` in the file `a.png.jpg`: try the whole name first.
        files = stems.get(unicodedata.normalize("NFC", last)) or stems.get(stem(last), [])
        return [self._folders[folder] / file for file in files]

    def ending(self) -> str:
        """Return the ending of most images that were listed."""
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
