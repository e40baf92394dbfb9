"""Make the report's parts on training: curves, LR-range tests, a batch, speed."""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from planet_jax.results import pictures
from planet_jax.results.journey_tables import journey as journey_table
from planet_jax.results.journey_tables import last_fbeta
from planet_jax.results.report import html
from planet_jax.results.report.run_folder import MissingPart, RunFolder
from planet_jax.results.score_pictures import WIDTH
from planet_jax.train import lr_range

BATCH_WIDTH = 900  # pixels of the picture of the augmented batch
HEIGHT = 3.2  # inches


def journey(run: RunFolder) -> str:
    """Show the notebook's table of all chained stages, and the curves."""
    names = " → ".join(folder.name for folder in run.chain)
    parts = [html.table(journey_table(run.chain))]
    if run.members:
        rows = [
            {"run": str(run), "F2, last epoch": f"{last_fbeta(run):.4f}"} for run in run.members
        ]
        parts = ["<h3>Members</h3>", html.table(pd.DataFrame(rows)), f"<h3>{names}</h3>", *parts]
    if before := run.init_from(run.chain[0]):
        parts.append(html.note(f"The first stage started from {before}, which does not exist."))
    history = run.history(run.chain[-1])
    loss = score = ""
    if len(history):
        last = history.iloc[-1]
        loss = f" After the last epoch it is {last['valid_loss']:.4f}."
        score = f" F2 after the last epoch: {last['fbeta']:.4f}."
    curves = html.side_by_side(
        _curve(run, pictures.loss, f"Loss along {names}.", loss),
        _curve(run, pictures.rates, "Learning rates of the layer groups, and momentum."),
        _curve(run, pictures.scores, "Scores on the validation chips after each epoch.", score),
    )
    return "".join([*parts, "<h3>Curves</h3>", curves])


def _curve(
    run: RunFolder, draw: Callable[..., None], caption: str, more_alternative: str = ""
) -> str:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="tight")
    draw(figure.subplots(), *pictures.along(run.chain))
    return html.figure(figure, caption, caption + more_alternative)


def lr_ranges(run: RunFolder) -> str:
    """Show each stage's LR-range test and its suggestions."""
    figures = []
    for folder in run.chain:
        if not (folder / "lr_range.csv").exists():
            continue
        curve = pd.read_csv(folder / "lr_range.csv")
        lrs, losses = curve["lr"].to_numpy(), curve["loss"].to_numpy()
        suggestions = lr_range.suggest(lrs, losses) if len(lrs) >= lr_range.MIN_POINTS else ()
        named = [
            f"{name} {lr:.1e}" for name, lr in zip(pictures.SUGGESTIONS, suggestions, strict=False)
        ]
        picture = pictures.lr_range_curve(lrs, losses, suggestions)
        picture.set_size_inches(WIDTH, HEIGHT)
        text = ", ".join(named) or "too few points for a suggestion"
        figures.append(html.figure(picture, f"LR-range test before {folder.name}: {text}."))
    if not figures:
        raise MissingPart("No stage has an lr_range.csv: `lr_range` writes it.")
    return html.side_by_side(*figures)


def augmented_batch(run: RunFolder) -> str:
    """Show the picture of an augmented training batch."""
    paths = [folder / "show_batch.png" for folder in run.chain[::-1]]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise MissingPart("No stage has a show_batch.png: `show_batch` draws it.")
    caption = f"The first 16 chips of the first batch of {path.parent.name}, with their labels."
    alternative = "Augmented chips in a grid, each with its labels above it"
    return html.captioned(html.image_file(path, BATCH_WIDTH, alternative), caption)


def speed(run: RunFolder) -> str:
    """Show the chips per second and the wait for input."""
    rows = []
    for folder in run.chain:
        steps = run.steps(folder)
        rows.append(
            {
                "stage": folder.name,
                "size": run.options(folder)["data.size"],
                "steps": pictures.count(steps["step"]),
                "chips/s (median)": f"{steps['images_per_second'].median():.1f}",
                "input wait (mean)": f"{steps['input_wait'].mean():.1%}",
                "seconds": f"{run.history(folder)['time'].sum():.0f}",
            }
        )
    figures = html.side_by_side(
        _curve(run, pictures.speed, "Chips per second, at each step."),
        _curve(run, pictures.input_wait, "Share of each step that waits for chips."),
    )
    return html.table(pd.DataFrame(rows)) + figures
