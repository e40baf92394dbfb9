"""Run benchmarks and write what they print into the documentation.

    python benchmarks/write_tables.py [NAME ...]

A page holds the text of a benchmark between `<!-- begin NAME -->` and `<!-- end NAME -->`. Without
a name all are run, which takes hours on two idle cores. The text begins with the command. `step`
compares with PyTorch only where torch and torchvision are installed, and `loader` with fastai only
where FASTAI_PYTHON names a Python that has it.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "twin": "twin.py --picture docs/images/twin.png",
    "decisions": "decisions.py",
    "step": "step.py",
    "kept-memory": "kept_memory.py",
    "start": "start.py",
    "loader": "loader.py",
    "steps": "accelerator.py steps",
    "batches-v5e": "accelerator.py batches --target v5e:2x2 --chips 16 64 256",
    "batches-v5p": "accelerator.py batches --target v5p:2x2x1 --chips 64 128",
    "batches-h100": "accelerator.py batches --target h100:4 --chips 16 64 256",
    "batches-v5e-256": "accelerator.py batches --target v5e:2x2 --chips 64 128 --size 256",
    "batches-h100-256": "accelerator.py batches --target h100:4 --chips 64 128 --size 256",
    "published": "accelerator.py published",
    "stages": "accelerator.py stages",
    "networks": "accelerator.py networks --target h100:4",
    "resnet18": "step.py --network resnet18",
    "resnet101": "step.py --network resnet101",
    "scale": "scale.py",
    "scale-planet": "scale.py --chips 40479 --labels 17 --side 256 --only prepare",
    "scale-labels": "scale.py --chips 25000 --labels 500",
    "bucket": "bucket.py",
    "recipes": "recipes.py --picture docs/images/recipes.png",
    "recipes-seeds": "recipes.py --seeds 0 1 --only 'average of the seeds'",
}


def write(name: str) -> None:
    """Run a benchmark and replace its text in the page that holds it."""
    block = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    pages = [page for page in (ROOT / "docs").glob("*.md") if block.search(page.read_text())]
    if len(pages) != 1:
        sys.exit(f"{name}: {len(pages)} pages of docs/ have a place for it; one must")
    command = f"python benchmarks/{COMMANDS[name]}"
    program = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout)
        sys.exit(f"{command} ended with status {done.returncode}; {pages[0]} is as before")
    text = f"`{command}`: {done.stdout.strip()}\n\n"
    written = block.sub(lambda found: found[1] + text + found[2], pages[0].read_text())
    temporary = pages[0].with_suffix(".tmp")
    temporary.write_text(written)
    os.replace(temporary, pages[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*COMMANDS, []])
    for name in parser.parse_args().names or COMMANDS:
        write(name)


if __name__ == "__main__":
    main()
