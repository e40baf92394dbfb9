"""Load epochs of chips with fastai 1.0.61: one for each line of stdin, printing its chips/s.

    python benchmarks/fastai_loader.py ROOT SIZE WORKERS

`loader.py --fastai PYTHON` runs it with an interpreter that has fastai, which planet_jax's own need
not have. The transforms are the notebook's.
"""

import sys
import time
import warnings

import torch

warnings.filterwarnings("ignore")
torch.library.register_fake = lambda *args, **kwargs: lambda f: f  # for CPU builds
from fastai import vision  # noqa: E402


def main() -> None:
    root, size, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    transforms = vision.get_transforms(
        flip_vert=True, max_lighting=0.1, max_zoom=1.05, max_warp=0.0
    )
    data = (
        vision.ImageList.from_csv(root, "train_v2.csv", folder="train-jpg", suffix=".jpg")
        .split_none()
        .label_from_df(label_delim=" ")
        .transform(transforms, size=size)
        .databunch(bs=64, num_workers=workers)
        .normalize(vision.imagenet_stats)
    )
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        count = sum(len(chips) for chips, _ in data.train_dl)
        print(count / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
