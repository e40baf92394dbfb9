"""Check the files, links, commands and options that the documents name, and the README's length."""

import re
import runpy

import pytest

from planet_jax.config import OPTIONS
from planet_jax.main import COMMANDS
from tests.support import ROOT

MISTYPED = "optim.weight_deacy"  # reliability.md uses this wrong name on purpose
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().split()) <= 800


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_option_and_command_that_a_document_names_exists(document):
    text = document.read_text()
    files = re.findall(r"\]\((?!http|#)([^)#]+)", text)  # links, relative to the document
    missing = [file for file in files if not (document.parent / file).exists()]
    paths = re.findall(r"\b(?:(?:unit|integration|faults|benchmarks|configs)/\w+\.py)", text)
    missing += [p for p in paths if not any((ROOT / f / p).exists() for f in ("", "tests"))]
    options = re.findall(r"--config\.([a-z_.0-9]+)", text)
    missing += [name for name in options if name not in OPTIONS and name != MISTYPED]
    commands = re.findall(r"planet_jax\.main (\w+) ", text)
    missing += [name for name in commands if name not in COMMANDS]
    targets = re.findall(r"^\s*make ([a-z-]+)", text, re.MULTILINE)
    targets += re.findall(r"`make ([a-z-]+)`", text)
    makefile = (ROOT / "Makefile").read_text()
    missing += [name for name in targets if f"\n{name}:" not in makefile]
    assert not missing


def test_every_measured_table_has_one_place_and_a_benchmark():
    program = runpy.run_path(str(ROOT / "benchmarks" / "write_tables.py"))
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for edge in ("begin", "end"):
        places = re.findall(rf"<!-- {edge} (\S+) -->", text)
        assert sorted(places) == sorted(program["COMMANDS"])
    for command in program["COMMANDS"].values():
        assert (ROOT / "benchmarks" / command.split()[0]).exists()
