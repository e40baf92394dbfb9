"""Pieces of a web page that asks nothing of the network: figures, tables, images, all inline."""

import base64
import hashlib
import importlib.resources
import io
import re
import string
import warnings
from collections.abc import Mapping
from html import escape

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def page(title: str, sections: Mapping[str, str]) -> str:
    """The whole page: `sections` are HTML by their headings.

    Its policy lets no request out and no script run but report.js, whatever a label says.
    """
    files = importlib.resources.files("planet_jax.results.report")
    script = files.joinpath("script.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = {heading: re.sub(r"\W+", "-", heading.lower()) for heading in sections}
    contents = [f'<li><a href="#{name}">{escape(head)}</a></li>' for head, name in names.items()]
    body = [
        f'<section id="{names[heading]}">\n<h2>{escape(heading)}</h2>\n{html}\n</section>'
        for heading, html in sections.items()
    ]
    return string.Template(files.joinpath("template.html").read_text()).substitute(
        title=escape(title), contents="\n".join(contents), body="\n".join(body),
        script=script, script_hash=f"sha256-{digest}",
    )  # fmt: skip


def figure(picture: Figure, caption: str, alternative: str = "") -> str:
    """A matplotlib figure as inline SVG, in the page's own colours, light or dark.

    What is black there becomes the page's ink, and what is white its ground. `alternative` says
    what is to be seen; by default the caption does.
    """
    file, told = io.StringIO(), escape(alternative or caption)
    text_as_text = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption})
    with text_as_text, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has more of them
        picture.savefig(
            file, format="svg", transparent=True, bbox_inches="tight", metadata=NO_METADATA
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    svg = svg.replace("#ffffff", "var(--page)")
    svg = re.sub(r"<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # else several figures would share them
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{told}" ', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def image(picture: Image.Image, alternative: str) -> str:
    """An image tag that holds its JPEG."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{picture.width}" '
        f'height="{picture.height}" alt="{escape(alternative)}">'
    )


def table(frame: pd.DataFrame, index: bool = False, digits: int = 6) -> str:
    """A table that scrolls by itself where the page is narrow."""
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(
            index=index, border=0, justify="left", float_format=lambda value: f"{value:.{digits}f}"
        )
    return f'<div class="wide" tabindex="0">{html}</div>'


def facts(pairs: Mapping[str, object]) -> str:
    """Names and their values."""
    rows = [f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in pairs.items()]
    return f'<dl class="facts">{"".join(rows)}</dl>'


def side_by_side(*figures: str) -> str:
    """Figures in as many columns as there is room for."""
    return f'<div class="figures">{"".join(figures)}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text, with `code` in backticks."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="{kind}">{html}</p>' if kind else f"<p>{html}</p>"


def commands(lines: list[str]) -> str:
    """Lines for a terminal."""
    return f'<pre tabindex="0">{escape(chr(10).join(lines))}</pre>'
