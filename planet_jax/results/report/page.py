"""Write report.html: one page that shows a run folder.

The page is built from files alone; nothing is trained, scored or downloaded. If a part's files are
missing, one line takes its place and names the command that writes them.
"""

from collections.abc import Callable
from pathlib import Path

from planet_jax.results.report import explanations, html, reproduce, scores, summary, training
from planet_jax.results.report.run_folder import MissingPart, RunFolder
from planet_jax.runtime.files import atomic_path

FILE = "report.html"
PARTS: dict[str, Callable[[RunFolder], str]] = {
    "Summary": summary.summary,
    "Journey": training.journey,
    "Learning-rate range": training.lr_ranges,
    "Augmented batch": training.augmented_batch,
    "Classes": scores.classes,
    "Decisions": scores.decisions,
    "Calibration": scores.calibration,
    "Co-occurrence": scores.co_occurrence,
    "Chips": scores.chips,
    "Explanations": explanations.explanations,
    "Speed": training.speed,
    "Hardware and versions": reproduce.hardware,
    "How to reproduce": reproduce.commands,
}


def write(folder: Path, root: Path) -> list[str]:
    """Write `folder`/report.html with chips of `root`; return one line for each missing part.

    Raises:
      BadInput: the folder has no run.
    """
    run, sections, missing = RunFolder(folder, root), {}, []
    for heading, part in PARTS.items():
        try:
            sections[heading] = part(run)
        except MissingPart as error:
            missing.append(f"{heading}: {error}")
            sections[heading] = html.note(str(error))
    with atomic_path(folder / FILE) as temporary:
        temporary.write_text(html.page(f"planet_jax: {folder}", sections), encoding="utf-8")
    return missing
