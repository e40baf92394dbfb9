"""report.html: one page of all that a run folder tells, for people who would rather look.

It is drawn from files alone: nothing is trained, scored or fetched for it. What a part needs and is
not there, the part says in a line, with the command that makes it.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from planet_jax.config import OPTIONS
from planet_jax.results import pictures, tables
from planet_jax.results.report import html, score_parts, score_pictures
from planet_jax.results.report.run_folder import Lacks, RunFolder, as_json, command, differs
from planet_jax.runtime.files import atomic_file
from planet_jax.train import lr_range

FILE = "report.html"
BATCH_WIDTH = 900  # pixels of the picture of the augmented batch
SAME_F2 = 0.002  # other devices may turn a label that is at the threshold


def write(folder: Path, root: Path) -> list[str]:
    """Writes `folder/report.html`, with chips of `root`; returns a line for each part it lacks.

    Raises:
      BadInput: no run is there.
    """
    run, sections, lacking = RunFolder(folder, root), {}, []
    for heading, part in PARTS.items():
        try:
            sections[heading] = part(run)
        except Lacks as lack:
            lacking.append(f"{heading}: {lack}")
            sections[heading] = html.paragraph(str(lack), "lacks")
    with atomic_file(folder / FILE) as temporary:
        temporary.write_text(html.page(f"planet_jax: {folder}", sections), encoding="utf-8")
    return lacking


def summary(run: RunFolder) -> str:
    """The scores, what was run, and the options that are not the defaults."""
    options, history = run.options(run.folder), pd.read_csv(run.folder / "history.csv")
    try:
        scores, note = _scores(run.metrics("fbeta", "intervals", "best_constant"), history)
    except Lacks as lack:
        last = f"{history['fbeta'].iloc[-1]:.4f}" if len(history) else "no epoch yet"
        scores, note = {"F2, last epoch": last}, str(lack)
    scores |= {
        "stages": str(len(run.chain)),
        "epochs of this stage": f"{len(history)} of {options['train.epochs']}",
        "chips' size": f"{options['data.size']} px",
        "batch": options["data.batch_size"],
        "precision": options["train.precision"],
    }
    rows = [
        {"option": name, "value": str(value), "default": str(as_json(OPTIONS[name].default)),
         "meaning": OPTIONS[name].help}
        for name, value in options.items() if differs(name, value)
    ]  # fmt: skip
    title = "<h3>Options that are not at their defaults</h3>"
    return html.facts(scores) + html.paragraph(note) + title + html.table(pd.DataFrame(rows))


def _scores(metrics: dict[str, Any], history: pd.DataFrame) -> tuple[dict[str, str], str]:
    """The evaluation's scores, and what to know of them."""
    low, high = metrics["intervals"]["fbeta"]
    note = f"[a, b]: 95% interval over chips. Labels at a threshold of {metrics['threshold']:g}."
    if _of_other_weights(metrics, history):
        note += " history.csv has another F2 for these weights: `evaluate` anew."
    return {
        "F2": f"{metrics['fbeta']:.4f} [{low:.4f}, {high:.4f}]",
        "accuracy_thresh": f"{metrics['accuracy_thresh']:.4f}",
        "loss": f"{metrics['valid_loss']:.4f}",
        "F2 of the best constant": f"{metrics['best_constant']['fbeta']:.4f}",
        "chips scored": metrics["chips"],
        "weights": metrics["checkpoint"],
    }, note


def _of_other_weights(metrics: dict[str, Any], history: pd.DataFrame) -> bool:
    """Whether the run was trained further since it was evaluated, as far as one can see."""
    if (
        metrics["test_time_augmentation"] != "none"
        or metrics["ensemble"]
        or metrics["split"] != "valid"
        or history.empty
    ):
        return False
    best = metrics["checkpoint"] == "best"
    expected = history["fbeta"].max() if best else history["fbeta"].iloc[-1]
    return bool(abs(expected - metrics["fbeta"]) > SAME_F2)


def journey(run: RunFolder) -> str:
    """The notebook's table over all chained stages, and the curves."""
    names = " → ".join(folder.name for folder in run.chain)
    history = pd.read_csv(run.chain[-1] / "history.csv")
    parts = [html.table(tables.journey(run.chain))]
    before = run.began_from(run.chain[0])
    if before:
        parts.append(html.paragraph(f"The first began from {before}, which is not here.", "lacks"))
    last = history.iloc[-1] if len(history) else None
    ended = f" The last epoch ends at {last['valid_loss']:.4f}." if last is not None else ""
    score = f" The last epoch has F2 {last['fbeta']:.4f}." if last is not None else ""
    curves = html.side_by_side(
        _curve(run, pictures.loss, f"Loss along {names}.", ended),
        _curve(run, pictures.rates, "Learning rates of the layer groups, and momentum."),
        _curve(run, pictures.scores, "Scores on the validation chips after each epoch.", score),
    )
    return "".join([*parts, "<h3>Curves</h3>", curves])


def _curve(run: RunFolder, draw: Callable[..., None], caption: str, more: str = "") -> str:
    figure = Figure(figsize=(score_pictures.WIDTH, 3.2), layout="tight")
    draw(figure.subplots(), *pictures.along(run.chain))
    return html.figure(figure, caption, caption + more)


def ranges(run: RunFolder) -> str:
    """The LR-range test of each stage that has one, and its suggestions."""
    figures = []
    for folder in run.chain:
        if not (folder / "lr_range.csv").exists():
            continue
        curve = pd.read_csv(folder / "lr_range.csv")
        lrs, losses = curve["lr"].to_numpy(), curve["loss"].to_numpy()
        found = lr_range.suggest(lrs, losses) if len(lrs) >= lr_range.FEWEST else ()
        told = ", ".join(
            f"{name} {lr:.1e}" for name, lr in zip(pictures.SUGGESTIONS, found, strict=False)
        )
        picture = pictures.lr_range_curve(lrs, losses, found)
        picture.set_size_inches(score_pictures.WIDTH, 3.2)
        caption = f"LR-range test before {folder.name}: {told or 'too short to suggest a rate'}."
        figures.append(html.figure(picture, caption))
    if not figures:
        raise Lacks("No stage has an lr_range.csv: `lr_range` writes it.")
    return html.side_by_side(*figures)


def batch(run: RunFolder) -> str:
    """Chips as training saw them."""
    drawn = [folder / "show_batch.png" for folder in run.chain[::-1]]
    path = next((path for path in drawn if path.exists()), None)
    if path is None:
        raise Lacks("No stage has a show_batch.png: `show_batch` draws it.")
    with Image.open(path) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    flat.thumbnail((BATCH_WIDTH, 4 * BATCH_WIDTH))
    caption = f"The first 16 chips of the first batch of {path.parent.name}, with their labels."
    picture_html = html.image(flat, "Augmented chips in a grid, each under its labels")
    return f"<figure>{picture_html}<figcaption>{caption}</figcaption></figure>"


def speed(run: RunFolder) -> str:
    """Chips a second and the wait for input."""
    rows = []
    for folder in run.chain:
        steps, options = pd.read_csv(folder / "steps.csv"), run.options(folder)
        rows.append(
            {
                "stage": folder.name, "size": options["data.size"], "steps": len(steps),
                "chips/s (median)": f"{steps['images_per_second'].median():.1f}",
                "input wait (mean)": f"{steps['input_wait'].mean():.1%}",
                "seconds": f"{pd.read_csv(folder / 'history.csv')['time'].sum():.0f}",
            }
        )  # fmt: skip
    figures = html.side_by_side(
        _curve(run, pictures.speed, "Chips a second, at each step."),
        _curve(run, pictures.input_wait, "Share of each step spent waiting for chips."),
    )
    return html.table(pd.DataFrame(rows)) + figures


def hardware(run: RunFolder) -> str:
    """What ran it."""
    devices: list[str] = run.about["devices"]
    kinds = {kind: devices.count(kind) for kind in dict.fromkeys(devices)}
    told = {
        "devices": ", ".join(f"{count} × {kind}" for kind, count in kinds.items()),
        "processes": run.about.get("hosts", 1),
        **run.about["versions"],
    }
    return html.facts(told)


def reproduce(run: RunFolder) -> str:
    """The commands that give this run again."""
    lines = []
    if commit := run.about.get("git_commit"):
        lines.append(f"git checkout {commit}")
    pins = [f"{name}=={version}" for name, version in run.about["versions"].items()]
    lines += [shlex.join(["pip", "install", *pins]), ""]
    lines += [command("train", run.options(folder)) for folder in run.chain]
    options = run.options(run.folder)
    lines += ["", command("evaluate", options | _scoring(run)), command("report", options)]
    told = "From the folder in which it was run; every option that is not at its default is here:"
    return html.paragraph(told) + html.commands(lines)


def _scoring(run: RunFolder) -> dict[str, Any]:
    """The options by which the run was evaluated, which may not be those it was trained with."""
    try:
        metrics = run.metrics(
            "decision", "intervals", "threshold", "checkpoint", "test_time_augmentation", "ensemble"
        )
    except Lacks:
        return {}
    decision = metrics["decision"]
    return {
        "checkpoint": metrics["checkpoint"],
        "score.threshold": metrics["threshold"],
        "score.decision_rule": decision["rule"],
        "score.calibrate": decision["calibrate"],
        "score.weather_rule": decision["weather_rule"],
        "score.resamples": metrics["intervals"]["resamples"],
        "score.test_time_augmentation": metrics["test_time_augmentation"],
        "score.ensemble": metrics["ensemble"],
    }


PARTS: dict[str, Callable[[RunFolder], str]] = {
    "Summary": summary,
    "Journey": journey,
    "Learning-rate range": ranges,
    "Augmented batch": batch,
    "Classes": score_parts.classes,
    "Decisions": score_parts.deciding,
    "Calibration": score_parts.calibration,
    "Co-occurrence": score_parts.co_occurrence,
    "Chips": score_parts.chips,
    "Speed": speed,
    "Hardware and versions": hardware,
    "How to reproduce": reproduce,
}
