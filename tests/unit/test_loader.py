import io

import numpy as np
import pytest
from PIL import Image

from planet_jax.data import dataset, loader
from planet_jax.data.augment import render
from planet_jax.data.decode import decode_chip
from planet_jax.runtime.errors import BadInput
from tests.support import write_chips

SETTINGS = {"size": 32, "batch_size": 8, "epochs": 3, "seed": 5, "augment": {}}
ROWS = np.arange(28)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    root = write_chips(folder / "root", [f"a t{i}" for i in range(30)])
    return dataset.load(root, folder / "cache")


def batches(data, **changes):
    return list(loader.train_batches(data, changes.pop("rows", ROWS), **(SETTINGS | changes)))


def joined(steps, name):
    return np.concatenate([step[name] for step in steps])


def test_epoch_has_each_chip_once_but_for_the_dropped_batch(data):
    steps = batches(data)
    assert len(steps) == 9  # 3 full batches of 8 from 28 chips, in each of 3 epochs
    orders = []
    for epoch in range(3):
        targets = joined(steps[3 * epoch : 3 * epoch + 3], "targets")[:, 1:]
        rows = targets.argmax(1)
        assert len(set(rows)) == 24
        orders.append(tuple(rows))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("hosts", [2, 4])
def test_global_batches_do_not_depend_on_hosts(data, hosts):
    alone = batches(data)
    shares = [batches(data, share=loader.Share(host, hosts)) for host in range(hosts)]
    for step, whole in enumerate(alone):
        for name in whole:
            together = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(together, whole[name])


def test_batches_do_not_depend_on_threads_or_restarts(data):
    whole = batches(data, threads=0)
    for changes in ({"threads": 3}, {"threads": 1, "first_step": 4}):
        other = batches(data, **changes)
        for a, b in zip(whole[changes.get("first_step", 0) :], other, strict=True):
            np.testing.assert_array_equal(a["chips"], b["chips"])
            np.testing.assert_array_equal(a["targets"], b["targets"])


def test_order_and_augmentation_depend_on_seed_and_epoch(data):
    rows = np.arange(24)  # three batches of 8; none is dropped
    first, second = batches(data, rows=rows), batches(data, rows=rows, seed=6)
    assert (joined(first, "targets") != joined(second, "targets")).any()

    def rendering(steps, chip):
        row = joined(steps, "targets")[:, 1:].argmax(1).tolist().index(chip)
        return joined(steps, "chips")[row]

    assert (rendering(first[:3], 7) != rendering(first[3:6], 7)).any()
    plain = batches(data, rows=rows, augment=None)
    assert (rendering(plain[:3], 7) == rendering(plain[3:6], 7)).all()


@pytest.mark.parametrize("hosts", [1, 2])
def test_score_batches_have_every_chip_once_in_order(data, hosts):
    rows = np.array([5, 3, 29, 0, 11])
    parts = [
        list(loader.score_batches(data, rows, size=32, batch_size=4, share=loader.Share(h, hosts)))
        for h in range(hosts)
    ]
    steps = [{k: np.concatenate([p[i][k] for p in parts]) for k in parts[0][i]} for i in range(2)]
    real = joined(steps, "real")
    assert real.tolist() == [True] * 5 + [False] * 3
    np.testing.assert_array_equal(joined(steps, "chips")[real], render(data.chips[rows], None, 32))


def test_folder_batches_decode_any_image_and_name_a_damaged_one(data, tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.jpg"]
    Image.new("LA", (50, 70), 128).save(files[0])
    Image.new("CMYK", (33, 33)).save(files[1])
    files[2].write_bytes(b"no")
    chips = joined(loader.folder_batches(files[:2], size=32, batch_size=4), "chips")
    assert (chips[0] == 128).all()
    assert (chips[1] == 255).all()
    with pytest.raises(BadInput, match=r"c\.jpg: cannot be decoded"):
        list(loader.folder_batches(files, size=32, batch_size=4))


def test_pixels_of_more_than_8_bits_are_scaled_by_their_type():
    levels = np.linspace(0, 1, 64).reshape(8, 8)

    def decoded(image, name="PNG"):
        file = io.BytesIO()
        image.save(file, name)
        return decode_chip(file.getvalue())[..., 0]

    expected = np.rint(levels * 255)
    sixteen = Image.fromarray((levels * 65535).astype(np.uint16))
    for name in ("PNG", "TIFF"):
        np.testing.assert_allclose(decoded(sixteen, name), expected, atol=1)
    floats = Image.fromarray(levels.astype(np.float32))
    np.testing.assert_allclose(decoded(floats, "TIFF"), expected, atol=1)
    for values in (levels.astype(np.float32) * 300, np.full((8, 8), np.nan, np.float32)):
        with pytest.raises(ValueError, match="floats are not between 0 and 1"):
            decoded(Image.fromarray(values), "TIFF")
    with pytest.raises(ValueError, match="integers have 32 bits"):
        decoded(Image.fromarray(np.full((8, 8), 70000, np.int32)), "TIFF")


@pytest.mark.slow
def test_memory_does_not_grow_over_epochs(data):
    """Count only anonymous pages, because the kernel can drop the pages of the mapped chips."""

    def anonymous_megabytes():
        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1024

    sizes = []
    settings = SETTINGS | {"size": 128, "epochs": 20 * 40, "augment": {}}
    for step, _ in enumerate(loader.train_batches(data, ROWS, **settings)):
        if step % 240 == 239:
            sizes.append(anonymous_megabytes())
    assert len(sizes) == 10
    assert sizes[-1] - sizes[1] < 8, sizes
