import pytest

from planet_jax.config import get_config
from planet_jax.data.prepare import prepare
from planet_jax.runtime.errors import BadInput
from tests.support import write_chips


def config_for(tmp_path, source, **sample):
    config = get_config()
    config.data.source = source
    config.data.root, config.data.cache = str(tmp_path / "root"), str(tmp_path / "cache")
    config.sample.update({"chips": 12, "test_chips": 1} | sample)
    return config


def test_sample_is_drawn_once(tmp_path, capsys):
    config = config_for(tmp_path, "sample")
    data_set = prepare(config.data, config.sample)
    assert data_set.chips.shape == (12, 256, 256, 3)
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == [
        "test-jpg", "train-jpg", "train_v2.csv",
    ]  # fmt: skip
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "drawing chips" in captured.err
    again = config_for(tmp_path, "sample", chips=20)
    assert prepare(again.data, again.sample).digest == data_set.digest
    assert "drawing chips" not in capsys.readouterr().err


def test_folder_is_never_filled(tmp_path):
    config = config_for(tmp_path, "folder")
    with pytest.raises(BadInput, match="no label file"):
        prepare(config.data, config.sample)
    assert not (tmp_path / "root").exists()
    write_chips(tmp_path / "root", ["a", "b"])
    assert prepare(config.data, config.sample).labels.classes == ("a", "b")


def test_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "root").write_text("")
    config = config_for(tmp_path, "sample")
    config.data.root = str(tmp_path / "root" / "below")
    with pytest.raises(BadInput, match=r"config\.data\.root = .*below: cannot be written"):
        prepare(config.data, config.sample)
