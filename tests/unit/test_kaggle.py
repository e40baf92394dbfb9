"""Test fetch with the real kaggle package and a fake Kaggle server."""

import errno
import random
import shutil
import tarfile
import types

import pytest

from planet_jax.data import kaggle as downloads
from tests.kaggle_server import (
    FILES_OF_2017,
    MIRROR,
    SLUG,
    TRAIN,
    WHOLE,
    WHOLE_TEST,
    archive_of,
    in_folder,
    refused,
    table,
    tar_of,
    tree,
    zip_of,
)


def test_train_only(kaggle, tmp_path, capsys):
    root = tmp_path / "new" / "planet"
    downloads.fetch(root)
    assert tree(root) == WHOLE
    assert {name for name, _ in kaggle.gets} == {"train_v2.csv.zip", "train-jpg.tar.7z"}
    out, err = capsys.readouterr()
    assert out == ""
    assert "downloading train-jpg.tar.7z" in err
    assert "unpacking train-jpg: 8/8 chips" in err
    assert not list(root.glob(".*"))


def test_with_test_chips_then_nothing_to_do(kaggle, tmp_path):
    downloads.fetch(tmp_path, test=True)
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("home")} == WHOLE_TEST
    calls = len(kaggle.calls)
    downloads.fetch(tmp_path, test=True)
    assert len(kaggle.calls) == calls


def test_downloads_only_what_is_missing(kaggle, tmp_path):
    root = tmp_path / "planet"
    downloads.fetch(root)
    kaggle.gets.clear()
    shutil.rmtree(root / "train-jpg")
    downloads.fetch(root)
    assert tree(root) == WHOLE
    assert {name for name, _ in kaggle.gets} == {"train-jpg.tar.7z"}


@pytest.mark.parametrize(
    ("csv", "inside"),
    [
        ("train_v2.csv/train_v2.csv", None),
        ("train_v2.csv/train_v2.csv.zip", "train_v2.csv"),
        ("train_v2.csv", None),
        ("train_v2.csv", "train_v2.csv"),  # zipped for the download
        ("planet/train_v2.csv.zip", "planet/train_v2.csv"),
    ],
)
@pytest.mark.parametrize("page", [1, 200])
def test_spellings(kaggle, tmp_path, csv, inside, page):
    files = dict(FILES_OF_2017)
    del files["train_v2.csv.zip"]
    files["train-jpg.tar.7z/train-jpg.tar"] = tar_of(in_folder("./train-jpg", TRAIN))
    del files["train-jpg.tar.7z"]
    files[csv] = table(TRAIN) if inside is None else zip_of({inside: table(TRAIN)})
    kaggle.sources[SLUG], kaggle.page = files, page
    downloads.fetch(tmp_path / "planet")
    assert tree(tmp_path / "planet") == WHOLE


def unpacked(root="planet/planet"):
    """Return files with single chips, as in real mirrors, because Kaggle unpacks uploads."""
    return {f"{root}/{path}": content for path, content in WHOLE_TEST.items()}


@pytest.mark.parametrize("chips_are", ["not listed", "listed and gone"])
@pytest.mark.parametrize("mirror_is", ["archives", "unpacked"])
def test_mirror(kaggle, tmp_path, capsys, chips_are, mirror_is):
    names = {name for name in FILES_OF_2017 if name.endswith("7z")}
    if chips_are == "not listed":
        csvs = {n: c for n, c in FILES_OF_2017.items() if n not in names}
        kaggle.sources[SLUG] = csvs
    else:
        kaggle.gone = names
    assert "data.kaggle_mirror" in refused(tmp_path / "planet")
    assert tree(tmp_path / "planet") == {"train_v2.csv": table(TRAIN)}
    kaggle.gone = set()
    kaggle.sources[SLUG] = {n: c for n, c in FILES_OF_2017.items() if n not in names}
    kaggle.sources[MIRROR] = dict(FILES_OF_2017) if mirror_is == "archives" else unpacked()
    downloads.fetch(tmp_path / "planet", test=True, mirror=MIRROR)
    assert tree(tmp_path / "planet") == WHOLE_TEST
    assert not (tmp_path / "planet" / ".downloads").exists()
    assert "train-jpg.tar.7z" in capsys.readouterr().err
    if mirror_is == "unpacked":
        assert [name for name, _ in kaggle.gets].count("*archive.zip") == 1


def test_competition_of_unpacked_chips(kaggle, tmp_path):
    kaggle.sources[SLUG] = unpacked("data")
    downloads.fetch(tmp_path / "planet", test=True)
    assert tree(tmp_path / "planet") == WHOLE_TEST


@pytest.mark.parametrize("code", [403, 404])
def test_mirror_alone_has_everything(kaggle, tmp_path, code):
    kaggle.refuse["ListDataFiles"] = (code, "no")
    kaggle.sources[MIRROR] = unpacked()
    downloads.fetch(tmp_path / "planet", test=True, mirror=MIRROR)
    assert tree(tmp_path / "planet") == WHOLE_TEST


def test_long_listings_are_not_read_to_the_end(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MANY", 4)
    kaggle.page = 2
    kaggle.sources[SLUG] = {}
    kaggle.sources[MIRROR] = unpacked()
    downloads.fetch(tmp_path / "planet", mirror=MIRROR)
    assert tree(tmp_path / "planet") == WHOLE
    assert [call for call, _ in kaggle.calls].count("ListDatasetFiles") == 2


@pytest.mark.parametrize("by_hand", ["7z", "tar", "zip", "folder", "7z and csv.zip"])
def test_files_placed_by_hand(kaggle, tmp_path, by_hand):
    root = tmp_path / "planet"
    root.mkdir()
    (root / "train_v2.csv").write_bytes(table(TRAIN))
    match by_hand:
        case "7z":
            (root / "train-jpg.tar.7z").write_bytes(archive_of("train-jpg", TRAIN))
        case "tar":
            (root / "train-jpg.tar").write_bytes(tar_of(in_folder("train-jpg", TRAIN)))
        case "zip":
            (root / "train-jpg.zip").write_bytes(zip_of(in_folder("train-jpg", TRAIN)))
        case "folder":
            (root / "train-jpg").mkdir()
            for name, chip in TRAIN.items():
                (root / "train-jpg" / name).write_bytes(chip)
        case _:
            (root / "train_v2.csv").unlink()
            (root / "train_v2.csv.zip").write_bytes(zip_of({"train_v2.csv": table(TRAIN)}))
            (root / "train-jpg.tar.7z").write_bytes(archive_of("train-jpg", TRAIN))
    before = tree(root)
    downloads.fetch(root)
    assert tree(root) == before | WHOLE  # the archive is kept
    assert kaggle.calls == []


def test_all_test_chips_in_one_folder_by_hand(kaggle, tmp_path):
    root = tmp_path / "planet"
    for path, content in WHOLE_TEST.items():
        file = root / path.replace("test-jpg-additional", "test-jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    before = tree(root)
    downloads.fetch(root, test=True)
    assert tree(root) == before
    assert kaggle.calls == []


def test_incomplete_folder_by_hand(kaggle, tmp_path):
    root = tmp_path / "planet"
    downloads.fetch(root)
    for i in (1, 3, 4, 5, 6):
        (root / "train-jpg" / f"train_{i}.jpg").unlink()
    line = refused(root)
    assert "5 of the CSV's 8 chips are missing (train_1.jpg, train_3.jpg, train_4.jpg and 2" in line
    assert "delete it" in line
    assert len(tree(root)) == 4  # the user's files are kept


@pytest.mark.parametrize(
    ("call", "code", "expected"),
    [
        ("ListDataFiles", 401, "set KAGGLE_API_TOKEN"),
        ("ListDataFiles", 403, f"accept the rules at https://www.kaggle.com/c/{SLUG}/rules"),
        ("ListDataFiles", 404, f"Kaggle has no {SLUG}"),
        ("ListDataFiles", 429, "later"),
        ("ListDataFiles", 500, "later"),
        ("DownloadDataFile", 401, "set KAGGLE_API_TOKEN"),
        ("DownloadDataFile", 403, f"accept the rules at https://www.kaggle.com/c/{SLUG}/rules"),
        ("DownloadDataFile", 404, "Kaggle has no train_v2.csv.zip"),
        ("DownloadDataFile", 503, "later"),
    ],
)
def test_refusals(kaggle, tmp_path, call, code, expected):
    kaggle.refuse[call] = (code, "You must accept\nthis competition's rules")
    assert expected in refused(tmp_path / "planet")
    assert tree(tmp_path / "planet") == {}
    kaggle.refuse.clear()
    downloads.fetch(tmp_path / "planet")
    assert tree(tmp_path / "planet") == WHOLE


def test_private_mirror(kaggle, tmp_path):
    kaggle.sources[SLUG] = {}
    kaggle.refuse["ListDatasetFiles"] = (403, "no")
    line = refused(tmp_path / "planet", mirror=MIRROR)
    assert f"refuses {MIRROR} (403): see https://www.kaggle.com/datasets/{MIRROR}" in line


@pytest.mark.parametrize("call", ["ListDataFiles"])
def test_answer_is_a_web_page(kaggle, tmp_path, call):
    kaggle.odd.add(call)
    assert "cannot be read" in refused(tmp_path / "planet")


def test_no_credentials(kaggle, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_KEY")
    assert "no Kaggle credentials" in refused(tmp_path / "planet")
    assert capsys.readouterr().out == ""
    assert kaggle.calls == []


def test_access_token(kaggle, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_secret")
    downloads.fetch(tmp_path / "planet")
    assert tree(tmp_path / "planet") == WHOLE
    kaggle.refuse["IntrospectToken"] = (404, "expired")
    assert "no Kaggle credentials, or expired" in refused(tmp_path / "other")


def test_network_down(kaggle, tmp_path, monkeypatch):
    import kagglesdk.kaggle_env

    prod = kagglesdk.kaggle_env.KaggleEnv.PROD
    monkeypatch.setitem(kagglesdk.kaggle_env._env_to_endpoint, prod, "http://127.0.0.1:9")
    assert "the network or Kaggle is down" in refused(tmp_path / "planet")
    assert not (tmp_path / "planet").exists()


@pytest.mark.parametrize("options", [{"competition": "../up"}, {"competition": ""}])
@pytest.mark.parametrize("mirror", ["", "slug", "a/b/c", "https://x/y", "a/..", "../a"])
def test_bad_options(tmp_path, options, mirror):
    refused(tmp_path, mirror=mirror, **options)
    if mirror:
        assert "data.kaggle_mirror" in refused(tmp_path, mirror=mirror)


@pytest.fixture
def big(kaggle, tmp_path):
    """Return a root with the CSV, and the files expected there after the fetch.

    The archive has several 1 MB pieces, the size that the kaggle package writes.
    """
    chips = TRAIN | {"train_0.jpg": random.Random(0).randbytes(5 * 2**20)}
    kaggle.sources[SLUG]["train-jpg.tar.7z"] = archive_of("train-jpg", chips)
    root = tmp_path / "planet"
    root.mkdir()
    (root / "train_v2.csv").write_bytes(table(TRAIN))
    return root, {"train_v2.csv": table(TRAIN)} | in_folder("train-jpg", chips)


def test_broken_connection_is_resumed_by_the_package(kaggle, big):
    root, expected = big
    kaggle.breaks = 2
    downloads.fetch(root)
    assert tree(root) == expected
    assert [start for _, start in kaggle.gets][1] > 2**20


def test_download_is_resumed_by_the_next_run(kaggle, big):
    root, expected = big
    kaggle.breaks = 6
    assert "run again to continue" in refused(root)
    assert not (root / "train-jpg").exists()
    kaggle.gets.clear()
    downloads.fetch(root)
    assert tree(root) == expected
    assert kaggle.gets[-1][1] > 2**20


def test_part_of_another_version_is_not_resumed(kaggle, big):
    root, _ = big
    kaggle.breaks = 6
    refused(root)
    (part,) = (root / downloads.DOWNLOADS / "train-jpg.tar.7z.part").rglob("*.7z")
    kaggle.sources[SLUG] = dict(FILES_OF_2017)
    assert (size := part.stat().st_size) > 2**20
    assert f" {size} of 2741 bytes" in refused(root)  # the package keeps the larger partial file
    downloads.fetch(root)
    assert tree(root) == WHOLE


def test_listed_size_differs(kaggle, tmp_path):
    kaggle.sizes["train-jpg.tar.7z"] = 10
    assert "of 10 bytes" in refused(tmp_path / "planet")
    assert tree(tmp_path / "planet") == {"train_v2.csv": table(TRAIN)}


@pytest.mark.parametrize("free", [0, 1000, 8000])
def test_disk_too_small(kaggle, tmp_path, monkeypatch, free):
    usage = types.SimpleNamespace(free=free)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage)
    root = tmp_path / "planet"
    line = refused(root)
    assert "0.00 GB are free" in line
    assert "config.data.root to another folder" in line
    assert not (root / "train-jpg").exists()
    monkeypatch.undo()


def test_disk_full_while_unpacking(kaggle, tmp_path, monkeypatch):
    root = tmp_path / "planet"

    def extract(self, member, out, filter):
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    monkeypatch.setattr(tarfile.TarFile, "extract", extract)
    assert "No space left on device" in refused(root)
    assert set(tree(root)) == {"train_v2.csv", ".downloads/train-jpg.tar.7z"}
    assert [path.name for path in root.iterdir() if ".tmp" in path.name] == []


def test_root_is_a_file(kaggle, tmp_path):
    (tmp_path / "planet").write_text("")
    assert "config.data.root to another folder" in refused(tmp_path / "planet")
