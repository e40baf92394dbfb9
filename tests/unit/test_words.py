"""Check that the project's text has no archaic and no British words."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDERS = ("planet_jax", "configs", "docs", "tests", "benchmarks", "examples", ".github")
ENDINGS = (".py", ".md", ".js", ".html", ".toml", ".cff", ".yml", ".yaml", ".ipynb", "Makefile")
ARCHAIC = (
    r"told|said|sees? to|goes on|go on|went on|anew|lest|stands?|lacks?|lacking|mend(s|ed|ing)?|"
    r"(is|are|was|were|be) of|of which|of whom|as \w+( \w+)? has it|it were|thereby|therein|"
    r"thereof|wherein|whereby|hence|upon|nought|aught|save for|nobody's|at hand|bears?|afresh|"
    r"hitherto|shall|ere|whoever|whence|betimes|amiss|naught"
)
BRITISH = (
    r"\w*[^aeiou\W]isation\w*|(normal|initial|optim|organ|recogn|serial|parallel|real|util|minim|"
    r"maxim|general|summar)is(e|es|ed|er|ing)|colou?rs?(?<!color)(?<!colors)|behaviours?|neighbours?|"
    r"favou?rs?(?<!favor)(?<!favors)|centres?|metres?|catalogues?|labell(ed|ing)|modell(ed|ing)|"
    r"cancell(ed|ing)|artefacts?|grey|licence"
)


def texts() -> list[Path]:
    """Return the text files of the project."""
    files = [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    return [path for path in files if path.is_file() and path.name.endswith(ENDINGS)]


@pytest.mark.parametrize("words", [ARCHAIC, BRITISH], ids=["archaic", "british"])
def test_text_is_plain_american_english(words):
    pattern, hits = re.compile(rf"\b({words})\b", re.IGNORECASE), []
    for path in texts():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if '"image/' in line or '"data:image' in line:  # pictures of a notebook or page
                continue
            hits += [
                f"{path.relative_to(ROOT)}:{number}: {m[0]!r} in {line.strip()[:80]}"
                for m in pattern.finditer(line)
            ]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    "line", ["The file is of the run.", "as fastai has it", "It stands here", "normalised colours"]
)
def test_the_patterns_find_what_they_should(line):
    assert re.search(rf"\b({ARCHAIC}|{BRITISH})\b", line)
