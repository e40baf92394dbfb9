import functools
import os
import shutil
import subprocess
import sys

import pytest

from planet_jax.runtime.files import (
    DIGESTS,
    atomic_path,
    find_damage,
    lock_folder,
    remove_folder,
    replace,
    seal,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(folder, content="new"):
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text(content)


def test_file_is_replaced_when_the_block_succeeds(tmp_path):
    path = tmp_path / "below" / "table.csv"
    for content in ("old", "new"):
        with atomic_path(path) as temporary:
            assert temporary.suffix == ".csv"  # pandas and Pillow choose the format by the suffix
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path.parent) == ["table.csv"]


def test_block_that_raises_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_path(path) as temporary:
        temporary.write_text("new \ud800")
    with pytest.raises(TypeError):
        write_folder(tmp_path / "folder", content=None)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_folder_is_replaced_when_the_block_succeeds(tmp_path):
    folder = tmp_path / "chips"
    for content in ("old", "new"):
        write_folder(folder, content)
    assert (folder / "a").read_text() == "new"
    with pytest.raises(TypeError):
        write_folder(folder, content=None)
    assert (folder / "a").read_text() == "new"
    assert names(tmp_path) == ["chips"]


def test_older_folder_is_whole_until_the_new_one_has_its_name(tmp_path, monkeypatch):
    """A process that is killed between the renames leaves both folders, each whole."""
    folder = tmp_path / "chips"
    write_folder(folder, "old")

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    (tmp_path / "new").mkdir()
    with pytest.raises(KeyboardInterrupt):
        replace(tmp_path / "new", folder)
    (older,) = tmp_path.glob(".old-*-chips")
    assert (older / "a").read_text() == "old"
    assert (tmp_path / "new").is_dir()


def test_removed_folder_loses_its_name_first(tmp_path, monkeypatch):
    write_folder(tmp_path / "chips")
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)
    remove_folder(tmp_path / "chips")
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith(".old-")
    assert (aside / "a").read_text() == "new"


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_kept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    alive = f".tmp-{os.getppid()}-chips"
    dead = f".tmp-{ended.pid}-chips"
    other = f".tmp-{ended.pid}-other"  # removed when `other` is written
    for name in (alive, dead, other):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("partial")
    (tmp_path / ".tmp-none-chips").write_text("of no process")
    write_folder(tmp_path / "chips")
    assert names(tmp_path) == sorted([alive, other, "chips"])


def test_system_error_without_a_path_gets_it(tmp_path):
    with pytest.raises(OSError, match=r"x\.npy") as caught, atomic_path(tmp_path / "x.npy"):
        raise OSError(28, "No space left on device")
    assert caught.value.errno == 28


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_locked_folder_is_refused(tmp_path):
    once = functools.partial(lock_folder, tmp_path / "run", wait=False)
    with once(), pytest.raises(BlockingIOError), once():
        pass
    with once():
        pass


@pytest.fixture
def sealed(tmp_path):
    """Return a sealed folder with two files."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("one")
    (tmp_path / "b" / "c").write_text("two")
    seal(tmp_path)
    assert find_damage(tmp_path) == ""
    return tmp_path


def test_changed_missing_and_added_files_are_damage(sealed):
    (sealed / "a").write_text("One")
    assert find_damage(sealed) == "a has changed"
    (sealed / "b" / "c").unlink()
    (sealed / "d").write_text("")
    assert find_damage(sealed) == "a has changed, b/c is missing, d has changed"


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "{", "[" * 100_000])
def test_damaged_digests_are_damage(sealed, content):
    (sealed / DIGESTS).write_text(content)
    assert find_damage(sealed)


def test_digests_that_say_the_same_in_other_bytes_are_damage(sealed):
    (sealed / DIGESTS).write_text((sealed / DIGESTS).read_text() + " ")
    assert find_damage(sealed) == f"{DIGESTS} has changed"


def test_missing_digests_and_folders_are_damage(sealed):
    (sealed / DIGESTS).unlink()
    assert find_damage(sealed) == f"{DIGESTS}: No such file or directory"
    assert "No such file" in find_damage(sealed / "none")
