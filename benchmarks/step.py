"""Measure a step in images per second: ours, plain Flax, and PyTorch if it is installed.

    python benchmarks/step.py [--batch 16] [--size 128] [--rounds 15] [--network resnet18]

Each program runs in a process of its own, so that no library's threads take time from another. They
alternate: a round takes one step of each, in turn. Ratios are the medians over rounds, with the
least and the most. They are comparable between machines of one kind; speeds are not. PyTorch runs
eagerly, in its default layout (NCHW) and in channels-last; its model is torchvision's network with
the last layer replaced. "plain Flax" has ResNet50 alone. All programs keep the memory of a step for
the next one (docs/getting-started.md). plain Flax has XLA's default flags, as a user's program has.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable

import jax
import machine
import numpy as np
import plain
from worker import Worker, serve

from planet_jax import backend
from planet_jax.model import classifier
from planet_jax.model.resnet import NETWORKS
from planet_jax.runtime import memory
from planet_jax.train.steps import (
    Recipe,
    create_state,
    make_predict_step,
    make_train_step,
    replicate,
    to_devices,
)

CLASSES = 17
KINDS = ("frozen", "full", "inference")
# docs/getting-started.md
KEPT = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=1099511627776"
}
Step = Callable[[], float]  # takes one step and returns a number that depends on all of it


def ours(chips: np.ndarray, targets: np.ndarray, kind: str, network: str) -> Step:
    n, model = jax.local_device_count(), classifier.build(CLASSES, network)
    recipe = Recipe(freeze=kind == "frozen", weight_decay=1e-2)
    state = replicate(create_state(classifier.init(CLASSES, 0, network), recipe))
    key = jax.random.key(0)
    if kind == "inference":
        predict = make_predict_step(model)
        return lambda: float(np.asarray(predict(state.variables, to_devices(chips, n))).sum())
    step = make_train_step(model, recipe)
    batch = {"chips": to_devices(chips, n), "targets": to_devices(targets, n)}
    rates = {"lr": np.full(3, 1e-4, np.float32), "beta1": np.asarray(0.9, np.float32)}

    def take() -> float:
        nonlocal state
        state, loss = step(state, batch, rates, key)
        return float(loss)

    return take


def plain_flax(chips: np.ndarray, targets: np.ndarray, kind: str, network: str) -> Step:
    if network != "resnet50":
        raise ValueError(f"plain.py has no {network}")
    n = jax.local_device_count()
    init, step = plain.make(CLASSES, kind == "frozen", "float32")
    batch, state, key = (to_devices(chips, n), to_devices(targets, n)), init(), jax.random.key(0)
    if kind == "inference":
        model, (params, batch_stats, _) = plain.Classifier(CLASSES, np.dtype("float32")), state
        variables = {"params": params, "batch_stats": batch_stats}
        predict = jax.pmap(lambda v, x: model.apply(v, x, train=False), in_axes=(None, 0))
        return lambda: float(np.asarray(predict(variables, batch[0])).sum())

    def take() -> float:
        nonlocal state
        state, loss = step(state, *batch, key)
        return float(loss)

    return take


def pytorch(
    chips: np.ndarray, targets: np.ndarray, kind: str, network: str, channels_last: bool
) -> Step:
    import torch

    torch.library.register_fake = lambda *args, **kwargs: lambda f: f  # for CPU builds
    import torchvision

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = getattr(torchvision.models, network)()
    model.fc = torch.nn.Linear(model.fc.in_features, CLASSES)
    model = model.to(memory_format=layout).train(kind != "inference")
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.requires_grad_(kind == "full")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    x = torch.from_numpy(chips.transpose(0, 3, 1, 2).copy()).float() / 255
    x, y = x.contiguous(memory_format=layout), torch.from_numpy(targets).float()

    def take() -> float:
        if kind == "inference":
            with torch.inference_mode():
                return float(model(x).sum())
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return take


PROGRAMS: dict[str, Callable[[np.ndarray, np.ndarray, str, str], Step]] = {
    "ours": ours,
    "plain Flax": plain_flax,
    "PyTorch": functools.partial(pytorch, channels_last=False),
    "PyTorch, channels-last": functools.partial(pytorch, channels_last=True),
}


def work(program: str, kind: str, network: str, batch: int, size: int) -> None:
    """Take steps of one program for a `Worker`, which gets their seconds."""
    memory.limit_arenas()
    if program == "ours":
        backend.use_eigen_convolutions()
    rng = np.random.default_rng(0)
    chips = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    targets = (rng.random((batch, CLASSES)) < 0.2).astype(np.uint8)
    take = PROGRAMS[program](chips, targets, kind, network)
    for _ in range(2):  # the first compiles
        take()

    def measure() -> float:
        began = time.perf_counter()
        take()
        return time.perf_counter() - began

    serve(measure)


def command(
    program: str, kind: str, network: str = "resnet50", batch: int = 16, size: int = 128
) -> list[str]:
    """Return the command of a worker that takes steps of one program."""
    shape = ["--network", network, "--batch", str(batch), "--size", str(size)]
    return [sys.executable, __file__, "--program", program, "--kinds", kind, *shape]


def alternate(workers: dict[str, Worker], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each worker's steps, one per round, and end the workers."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.measure())
    for worker in workers.values():
        worker.end()
    return seconds


def ratio(others: list[float], own: list[float]) -> str:
    """Format how many times as fast as the other we are: the median over rounds, and the range."""
    ratios = [other / mine for other, mine in zip(others, own, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)  # in a worker
    args = parser.parse_args()
    if args.program:
        return work(args.program, args.kinds[0], args.network, args.batch, args.size)
    print(machine.describe("jax", "jaxlib", "flax", "torch", "torchvision"))
    print(
        f"{args.network}, {args.batch} chips of {args.size} px in float32. Images/s: the best of "
        f"{args.rounds} alternating rounds. Ratios: ours over the other, median (least to most) of "
        "the rounds.\n"
    )
    has_torch = all(map(importlib.util.find_spec, ("torch", "torchvision")))
    others = [name for name in list(PROGRAMS)[1:] if has_torch or "PyTorch" not in name]
    if args.network != "resnet50":
        others.remove("plain Flax")
    names = [name for other in others for name in (other, "ratio")]
    print(f"| step | ours | {' | '.join(names)} |\n{'| --- ' * (2 + len(names))}|")
    for kind in args.kinds:
        shape = args.network, args.batch, args.size
        workers = {
            name: Worker(command(name, kind, *shape), os.environ | KEPT)
            for name in ("ours", *others)
        }
        seconds = alternate(workers, args.rounds)
        cells = [f"{args.batch / min(seconds['ours']):.1f}"]
        for name in others:
            cells += [f"{args.batch / min(seconds[name]):.1f}",
                      ratio(seconds[name], seconds["ours"])]  # fmt: skip
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
