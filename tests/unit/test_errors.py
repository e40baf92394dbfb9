import errno

import jax
import pytest

from planet_jax.runtime.errors import BadInput, did_you_mean, first_few, resource_error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nat x"), "batch_size"),
        (MemoryError(), "batch_size"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (ValueError("page\nRESOURCE_EXHAUSTED: No space left on device"), "free some space"),
    ],
)
def test_missing_memory_or_disk_is_one_line(error, line):
    assert line in resource_error(error)
    assert "\n" not in resource_error(error)


def test_other_errors_are_not_the_machines():
    assert resource_error(ValueError("a bug")) is None
    assert resource_error(OSError(errno.ENOENT, "No such file or directory", "/x")) is None


def test_message_is_one_line():
    assert str(BadInput("one\n  two")) == "one two"


def test_nearest_name_or_all_names():
    assert did_you_mean("optim.lrr", ["optim.lr", "seed"]) == "did you mean optim.lr?"
    assert did_you_mean("x", ["seed", "lr"]) == "valid: lr, seed"


def test_long_lists_are_cut():
    assert first_few("abc") == "a, b, c"
    assert first_few("abcde") == "a, b, c and 2 more"
