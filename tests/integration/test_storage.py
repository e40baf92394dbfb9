"""Objects and data in a bucket, against an S3 server and a GCS emulator on the loopback."""

import gzip
import io
import shutil
import zipfile

import numpy as np
import pytest

from planet_jax import commands
from planet_jax.runtime.errors import BadInput
from planet_jax.storage import bucket as bucket_module
from planet_jax.storage.bucket import Bucket, StoreError, local_path
from planet_jax.storage.files import fetch_files
from tests.support import small_config, write_chips

# aiohttp's advice to gcsfs
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
both = pytest.mark.parametrize(
    "store", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True
)


@both
def test_objects_are_created_once_listed_and_removed(store, tmp_path):
    bucket = Bucket(store.url)
    assert bucket.list() == {}
    content = np.random.default_rng(0).bytes(2**20)
    (tmp_path / "big").write_bytes(content)
    bucket.upload(tmp_path / "big", "a/big")
    bucket.download("a/big", tmp_path / "there" / "big")
    assert (tmp_path / "there" / "big").read_bytes() == content
    assert [bucket.create("a/one", text) for text in (b"1", b"2")] == [True, False]
    assert bucket.read("a/one") == b"1"
    assert {name: info["size"] for name, info in bucket.list().items()} == {
        "a/big": 2**20, "a/one": 1,
    }  # fmt: skip
    bucket.remove(["a/one", "never there"])
    assert list(bucket.list()) == ["a/big"]
    for fault in ("403", "truncated") if store.url.startswith("s3") else ():  # gcsfs retries longer
        store.fault = fault
        with pytest.raises(StoreError, match=r"runs/one/a/big: cannot be read \(\w+: "):
            bucket.read("a/big")


@both
def test_data_come_from_a_bucket_once(store, machine, tmp_path, monkeypatch):
    """A folder or an archive of it trains; a broken transfer is continued, a whole one kept."""
    root = write_chips(tmp_path / "chips")
    bucket = Bucket(f"{store.url}-data")
    for path in sorted(root.rglob("*")):
        if path.is_file():
            bucket.upload(path, path.relative_to(root).as_posix())
    config = small_config(tmp_path, **{"data.root": bucket.url, "train.epochs": 1})
    store.fault = "truncated" if store.url.startswith("s3") else "403"
    with pytest.raises(StoreError, match="cannot be read"):
        fetch_files(bucket.url)
    store.fault = ""
    commands.train(config)
    before = sum(store.counts.values())
    fetch_files(bucket.url)
    assert sum(store.counts.values()) == before
    fetch_files(bucket.url, again=True)
    assert sum(store.counts.values()) - before <= 3  # it lists them, and fetches none

    archive = tmp_path / "chips.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path, "chips")
    parent = Bucket(store.url)
    parent.upload(archive, "chips.zip")
    url, copy = f"{store.url}/chips.zip", local_path(f"{store.url}/chips.zip")
    store.fault = "403"
    with pytest.raises(StoreError, match="cannot be read"):
        fetch_files(url)
    store.fault = ""
    monkeypatch.setattr(bucket_module, "BLOCK", 1000)
    download = Bucket.download_rest

    def download_some(*args):
        yield next(download(*args))
        raise StoreError("the connection is lost")

    monkeypatch.setattr(Bucket, "download_rest", download_some)
    with pytest.raises(StoreError, match="is lost"):
        fetch_files(url)
    (part,) = copy.glob(".*.part")
    assert part.read_bytes() == archive.read_bytes()[:1000]
    monkeypatch.setattr(Bucket, "download_rest", download)
    fetch_files(url)
    assert sorted(p.name for p in copy.iterdir() if p.name[0] != ".") == [
        "train-jpg", "train_v2.csv",
    ]  # fmt: skip
    commands.train(small_config(tmp_path / "b", **{"data.root": url, "train.epochs": 1}))
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as file:
        file.writestr("../../evil.csv", "x")
    parent.write("evil.zip", evil.getvalue())
    with pytest.raises(BadInput, match=r"evil\.zip: cannot be unpacked \(it holds no files"):
        fetch_files(f"{store.url}/evil.zip")
    assert not list((tmp_path / "machines").rglob("evil.csv"))
    packed = bytearray(gzip.compress(bytes(10**5)))
    packed[40] ^= 255
    for name, content in {"cut.zip": archive.read_bytes()[:500], "bad.tar.gz": packed}.items():
        parent.write(name, bytes(content))
        with pytest.raises(BadInput, match=rf"{name}: cannot be unpacked"):
            fetch_files(f"{store.url}/{name}")
