"""Measure a training step in images per second: ours, plain Flax, and PyTorch if installed.

    python benchmarks/step.py [--batch 16] [--size 128] [--rounds 5]

The steps alternate in one process; the best time of each counts. Ratios are comparable between
machines; speeds are not. PyTorch runs eagerly, in its default layout and in channels-last. Its
model is torchvision's ResNet50 with the last layer replaced. All steps share the program's memory
settings (`planet_jax.runtime.memory`).
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
import plain

from planet_jax.model import classifier
from planet_jax.runtime import memory
from planet_jax.train.steps import create_state, make_train_step, to_devices

CLASSES = 17
Step = Callable[[], float]  # trains one step and returns its loss


def ours(chips: np.ndarray, targets: np.ndarray, freeze: bool) -> Step:
    n = jax.local_device_count()
    step = make_train_step(classifier.build(CLASSES), freeze, 1e-2)
    batch = {"chips": to_devices(chips, n), "targets": to_devices(targets, n)}
    rates = {"lr": np.full(3, 1e-4, np.float32), "beta1": np.asarray(0.9, np.float32)}
    state, key = create_state(classifier.init(CLASSES, 0), freeze), jax.random.key(0)

    def take() -> float:
        nonlocal state
        state, loss = step(state, batch, rates, key)
        return float(loss)

    return take


def flaxs(chips: np.ndarray, targets: np.ndarray, freeze: bool) -> Step:
    n = jax.local_device_count()
    init, step = plain.make(CLASSES, freeze, "float32")
    batch, state, key = (to_devices(chips, n), to_devices(targets, n)), init(), jax.random.key(0)

    def take() -> float:
        nonlocal state
        state, loss = step(state, *batch, key)
        return float(loss)

    return take


def torchs(chips: np.ndarray, targets: np.ndarray, freeze: bool, channels_last: bool) -> Step:
    import torch

    torch.library.register_fake = lambda *args, **kwargs: lambda f: f  # for CPU builds
    import torchvision

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torchvision.models.resnet50()
    model.fc = torch.nn.Linear(2048, CLASSES)
    model = model.to(memory_format=layout)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.requires_grad_(not freeze)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    x = torch.from_numpy(chips.transpose(0, 3, 1, 2).copy()).float() / 255
    x, y = x.contiguous(memory_format=layout), torch.from_numpy(targets).float()

    def take() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    chips = rng.integers(0, 256, (args.batch, args.size, args.size, 3)).astype(np.uint8)
    targets = (rng.random((args.batch, CLASSES)) < 0.2).astype(np.uint8)
    print("| step | ours | plain Flax | PyTorch | PyTorch channels-last | ours / PyTorch |")
    print("| --- | --- | --- | --- | --- | --- |")
    for freeze in (True, False):
        steps = {"ours": ours(chips, targets, freeze), "flax": flaxs(chips, targets, freeze)}
        try:
            for name, channels_last in (("torch", False), ("channels-last", True)):
                steps[name] = torchs(chips, targets, freeze, channels_last)
        except ImportError:
            print("(PyTorch and torchvision are not installed)")
        for take in steps.values():
            take()
        best = dict.fromkeys(steps, 0.0)
        for _ in range(args.rounds):
            for name, take in steps.items():
                began = time.perf_counter()
                take()
                best[name] = max(best[name], args.batch / (time.perf_counter() - began))
        speeds = [f"{best[name]:.1f}" if name in best else "-" for name in
                  ("ours", "flax", "torch", "channels-last")]  # fmt: skip
        ratios = [f"{best['ours'] / best[name]:.2f}" for name in list(best)[2:]]
        print(f"| {'frozen' if freeze else 'full'} | {' | '.join(speeds)} | {', '.join(ratios)} |")


if __name__ == "__main__":
    memory.limit_arenas()
    main()
