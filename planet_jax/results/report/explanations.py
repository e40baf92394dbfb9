"""Make the report's part on maps, embeddings and near duplicates, from what score.explain adds."""

from typing import Any

from planet_jax.data.chip_files import ChipFinder
from planet_jax.results.report import gallery, html
from planet_jax.results.report.run_folder import MissingPart, RunFolder

WIDTH = 1200  # pixels of a picture: its text stays readable
MAX_PAIRS = 12  # of near duplicates shown
NONE = (
    "With `--config.score.explain=12`, `evaluate` also shows what speaks for and against the "
    "mistaken labels of the worst chips, how the network arranges all chips, and which validation "
    "chips repeat a training chip."
)
MAPS = (
    "The chips of highest loss with their clearest wrong and missed labels and the probabilities: "
    "red cells raise the label's logit, blue cells lower it, and it is the sum of map and rest. A "
    "cell is 32 px of the network's input, but depends on more of the chip."
)
EMBEDDINGS = (
    "All scored chips in the plane of most variance: near chips have similar features, a chip has "
    "the color of its rarest label, diamonds are medians of labels, and numbers are those of the "
    "chips above. Both pictures are from the plain chips and the first run, even if the scores are "
    "averages."
)


def explanations(run: RunFolder) -> str:
    """Show the maps, the embeddings, and the near duplicates across the split."""
    metrics = run.metrics()
    if "explained" not in metrics:
        return html.paragraph(NONE)
    parts = []
    for title, name, caption in (
        ("What speaks for and against mistaken labels", "maps.png", MAPS),
        ("How the network arranges the chips", "embeddings.png", EMBEDDINGS),
    ):
        path = run.folder / name
        if not path.exists():
            raise MissingPart(f"No {path}: `evaluate` with score.explain draws it.")
        picture = html.captioned(html.image_file(path, WIDTH, title), caption)
        parts.append(f"<h3>{title}</h3>{picture}")
    if "near_duplicates" in metrics:
        parts += [
            "<h3>Near duplicates across the split</h3>",
            _pairs(run, metrics["near_duplicates"]),
        ]
    return "".join(parts)


def _pairs(run: RunFolder, found: dict[str, Any]) -> str:
    """Show pairs of chips side by side."""
    count, pairs = found["count"], found["pairs"][:MAX_PAIRS]
    if not count:
        return html.paragraph(
            f"None of {found['valid_chips']} validation chips repeats one of the "
            f"{found['train_chips']} training chips, in any of the square's eight symmetries."
        )
    without = found["fbeta_without"]
    score = "" if without is None else f" F2 of the other validation chips: {without:.4f}."
    text = (
        f"{count} of {found['valid_chips']} validation chips repeat a training chip, turned or "
        f"mirrored at most. Scores on them do not tell how well new chips are labeled.{score}"
    )
    finder = ChipFinder(run.chip_folder)
    figures = [
        html.captioned(
            "".join(
                gallery.picture(finder, pair[split], f"{split} chip {pair[split]}")
                for split in ("valid", "train")
            ),
            f"{pair['valid']} validates, {pair['train']} trains; similarity "
            f"{pair['similarity']:.3f}",
        )
        for pair in pairs
    ]
    more = html.paragraph(f"The first {len(pairs)}; metrics.json has more.")
    return html.paragraph(text) + html.side_by_side(*figures) + (more if count > len(pairs) else "")
