import math

import pytest

from planet_jax.train.log import Smooth, Table

COLUMNS = ("step", "loss")


def test_table_is_cut_back_to_its_mark(tmp_path, capsys):
    """Rows after the mark belong to steps that a resumed run repeats."""
    path = tmp_path / "steps.csv"
    table = Table(path, COLUMNS, None)
    assert path.read_text() == "step,loss\n"
    table.add(0, 0.1 + 0.2)
    mark = table.mark()
    assert mark.length == path.stat().st_size
    table.add(1, 0.5)
    whole = path.read_bytes()
    resumed = Table(path, COLUMNS, mark)
    assert path.read_text() == "step,loss\n0,0.30000000000000004\n"
    assert resumed.mark() == mark
    resumed.add(1, 0.5)
    assert path.read_bytes() == whole
    assert resumed.mark() == table.mark()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["missing", "changed", "cut"])
def test_damaged_table_loses_its_old_rows_alone(tmp_path, capsys, damage):
    path = tmp_path / "steps.csv"
    table = Table(path, COLUMNS, None)
    table.add(0, 0.25)
    mark, content = table.mark(), path.read_bytes()
    damaged = {"missing": None, "changed": b"S" + content[1:], "cut": content[:-3]}[damage]
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged)
    Table(path, COLUMNS, mark).add(1, 0.5)
    assert path.read_text() == "step,loss\n1,0.5\n"
    assert "steps.csv: damaged or missing; training continues" in capsys.readouterr().err
    kept = tmp_path / "steps.csv.damaged"
    assert not kept.exists() if damaged is None else kept.read_bytes() == damaged


def test_smoothed_loss_has_no_bias_toward_zero():
    smooth = Smooth()
    assert math.isnan(smooth.value)
    assert [smooth.add(2.0) for _ in range(3)] == pytest.approx([2.0] * 3)
