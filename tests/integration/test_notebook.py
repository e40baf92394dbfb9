"""Test examples/journey.ipynb: check its stored outputs, then run it."""

import nbclient
import nbformat
import pytest

from tests.support import ROOT

FILE = ROOT / "examples" / "journey.ipynb"
FIGURES = 5  # batch, LR range, curves, classes, threshold


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def check(notebook):
    """Check that every cell ran without error, and that figures, progress bar and scores exist."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    results = outputs(notebook)
    assert not [output for output in results if output.output_type == "error"]
    pictures = [output for output in results if "image/jpeg" in output.get("data", {})]
    assert len(pictures) == FIGURES
    text = "".join(output.get("text", "") for output in results)
    for line in ("LR-range test", "100%|", "validating", "average precision", "open it in a"):
        assert line in text


def test_its_outputs_are_kept():
    assert FILE.stat().st_size < 500_000
    check(nbformat.read(FILE, 4))


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS")  # one device, as on a user's machine
    notebook = nbformat.read(FILE, 4)
    for cell in notebook.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, coalesce_streams=True, resources=place).execute()
    check(notebook)
    assert (tmp_path / "runs" / "notebook" / "stage2" / "report.html").exists()
