"""Read labels from folders: each folder's name is the label of the images in it."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from planet_jax.data.chip_files import is_image, stem
from planet_jax.data.label_file import TRAIN, VALID, LabelRows, clean_label
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.progress import notify


def read(root: Path, data: ConfigDict) -> LabelRows:
    """Read `root/CHIP_FOLDER/LABEL/NAME.jpg` and, if set, `root/VALID_FOLDER/LABEL/NAME.jpg`.

    A chip's name is its path in `root` without the ending: `train/cat/001`. Training chips come
    first; each part is sorted by name.

    Raises:
      BadInput: a folder does not exist, or none of its folders has an image.
    """
    roles = {data.chip_folder: TRAIN}
    if data.valid_folder:
        roles[data.valid_folder] = VALID
    # With chip_folder = ".", the folder of validation chips is not a label.
    apart = {(root / folder).resolve() for folder in roles}
    chips: list[tuple[str, str, str]] = []
    for folder, role in roles.items():
        found = _labels_in(root, Path(folder), apart)
        if not found:
            raise BadInput(
                f"{root / folder}: no folder of images in it; set config.data.chip_folder to the "
                "folder in data.root that has a folder per label ('.': data.root itself)"
            )
        chips += [(name, label, role) for name, label in sorted(found.items())]
    names, labels, chip_roles = zip(*chips, strict=True)
    tags = [[label] for label in labels]
    return LabelRows(list(names), tags, roles=chip_roles if data.valid_folder else ())


def _labels_in(root: Path, folder: Path, apart: set[Path]) -> dict[str, str]:
    """Return `{name: label}` of the images in the subfolders of `folder`."""
    labels, ignored = {}, 0
    for entry in _entries(root / folder):
        path = root / folder / entry
        if entry.startswith(".") or path.resolve() in apart:
            continue
        if not path.is_dir():
            ignored += is_image(entry)
            continue
        for file in _entries(path):
            if is_image(file):
                labels[(folder / entry / stem(file)).as_posix()] = clean_label(entry)
            else:
                ignored += not file.startswith(".")
    if ignored:
        notify(f"{root / folder}: {ignored} files or folders are not a label's images; ignored")
    return labels


def _entries(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
        "".join(names).encode()
        return names
    except UnicodeEncodeError:
        raise BadInput(f"{folder}: a file's name is not UTF-8; rename it") from None
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot list it ({error.strerror}); set config.data.root and "
            "data.chip_folder to the folder that has a folder per label"
        ) from None
