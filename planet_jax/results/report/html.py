"""Build an HTML page and its elements, all inline: the page loads nothing from the network."""

import base64
import hashlib
import importlib.resources
import io
import re
import string
import warnings
from collections.abc import Mapping
from html import escape
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def page(title: str, sections: Mapping[str, str]) -> str:
    """Return the whole page; `sections` maps headings to HTML.

    Its content security policy blocks all requests and every script except script.js, so that HTML
    in a label or file name does nothing.
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
    """Return a matplotlib figure as inline SVG, for light and dark pages.

    Black becomes the page's text color, and white the page's background. `alternative` is the text
    for screen readers, by default the caption.
    """
    file = io.StringIO()
    text_as_text = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption})
    with text_as_text, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has fonts for more glyphs
        picture.savefig(
            file, format="svg", transparent=True, bbox_inches="tight", metadata=NO_METADATA
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    svg = svg.replace("#ffffff", "var(--page)")
    svg = re.sub(r"<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # ids must be unique on the page
    label = escape(alternative or caption)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return captioned(svg, caption)


def captioned(html: str, caption: str) -> str:
    """Return a figure element with a caption below."""
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>"


def image(picture: Image.Image, alternative: str) -> str:
    """Return an image as a JPEG in a data URL."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{picture.width}" '
        f'height="{picture.height}" alt="{escape(alternative)}">'
    )


def image_file(path: Path, width: int, alternative: str) -> str:
    """Return a picture file's image on white, at most `width` pixels wide."""
    with Image.open(path) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    flat.thumbnail((width, flat.height))
    return image(flat, alternative)


def table(frame: pd.DataFrame, index: bool = False, digits: int = 6) -> str:
    """Return a table that scrolls sideways if the page is narrow."""
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(
            index=index, border=0, justify="left", float_format=lambda value: f"{value:.{digits}f}"
        )
    return f'<div class="wide" tabindex="0">{html}</div>'


def facts(pairs: Mapping[str, object]) -> str:
    """Return a list of names and their values."""
    rows = [f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in pairs.items()]
    return f'<dl class="facts">{"".join(rows)}</dl>'


def side_by_side(*figures: str) -> str:
    """Return elements in as many columns as fit."""
    return f'<div class="figures">{"".join(figures)}</div>'


def paragraph(text: str) -> str:
    """Return a paragraph of plain text; text in backticks becomes code."""
    return f"<p>{_with_code(text)}</p>"


def note(text: str) -> str:
    """Return a highlighted paragraph on something that is missing."""
    return f'<p class="missing">{_with_code(text)}</p>'


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def commands(lines: list[str]) -> str:
    """Return lines for a terminal."""
    return f'<pre tabindex="0">{escape(chr(10).join(lines))}</pre>'
