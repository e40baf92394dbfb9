import os
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from planet_jax import config as options
from planet_jax.runtime.errors import BadInput

STAGES = {
    "stage1": ((1e-2, 2e-2), True, 128, ""),
    "stage2": ((1e-4, 2e-3), False, 128, "runs/stage1"),
    "stage1_256": ((1e-3, 1e-3, 1e-2), True, 256, "runs/stage2"),
    "stage2_256": ((1e-5, 2e-3), False, 256, "runs/stage1_256"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_notebooks_values(name):
    config = options.load(str(ROOT / "configs" / f"{name}.py"))
    optim = config.optim
    found = (optim.lr, optim.freeze, config.data.size, config.init_from)
    assert found == STAGES[name]
    assert (config.workdir, config.train.epochs, config.data.batch_size) == (f"runs/{name}", 5, 64)
    assert (config.data.source, config.model.weights) == ("kaggle", "imagenet")


def test_every_shipped_config_is_valid():
    for path in (ROOT / "configs").glob("*.py"):
        options.load(str(path))
    for name in STAGES:
        options.load(f"{ROOT / 'configs' / 'demo.py'}:{name}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data.size", 8, "config.data.size = 8 must be at least 32"),
        ("data.valid_fraction", 1.0, "must be between 0 and 1"),
        ("data.source", "disk", "must be one of folder, sample, kaggle"),
        ("optim.lr", (), "one to three numbers above 0"),
        ("optim.lr", (1e-3, -1.0), "one to three numbers above 0"),
        ("optim.lr", ("a",), "one to three numbers above 0"),
        ("optim.lr", (float("nan"),), "one to three numbers above 0"),
        ("optim.momentum", (0.9, 1.0), "two numbers between 0 and 1"),
        ("train.precision", "float16", "one of float32, bfloat16"),
        ("optim.weight_decay", float("nan"), "must be finite"),
        ("optim.div_factor", float("inf"), "must be finite"),
        ("workdir", " ", "a name, not empty"),
        ("lr_range.start_lr", 100.0, "must be below config.lr_range.end_lr"),
        ("init_from", "runs/base/../base", "init_from is config.workdir itself"),
    ],
)
def test_values_out_of_range_are_refused(name, value, message):
    config = options.get_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(BadInput) as caught:
        options.validate(config)
    assert message in str(caught.value)


def test_a_name_that_is_no_knob_is_refused_where_it_is_set(tmp_path):
    with pytest.raises(AttributeError):
        options.get_config().optim.learning_rate = 1.0
    file = tmp_path / "mine.py"
    file.write_text(
        "from planet_jax.config import get_config as base\n"
        "def get_config():\n    config = base()\n    config.optim.lrr = 3\n    return config\n"
    )
    with pytest.raises(BadInput, match=r"mine\.py: failed with (Key|Attribute)Error.*lr"):
        options.load(str(file))


@given(
    st.sampled_from(sorted(options.OPTIONS)), st.text() | st.integers() | st.floats() | st.none()
)
def test_any_value_is_taken_or_refused_by_name(name, value):
    try:
        options.check(name, value)
    except BadInput as error:
        message = str(error)
        assert message.startswith(f"config.{name} ")
        assert "\n" not in message
    else:  # taken: of the default's type, finite, and within the option's own rule
        option = options.OPTIONS[name]
        assert type(value) is type(option.default) or (type(value), type(option.default)) == (
            int,
            float,
        )
        assert value == value
        assert option.allowed(value)


REFUSED = {
    "command": (["trian", "--config=configs/smoke.py"], "trian is no command; did you mean train"),
    "two": (["train", "now", "--config", "configs/smoke.py"], "now is no command"),
    "no config": ([], "--config is missing; try --config configs/smoke.py"),
    "file": (["--config", "configs/smok.py"], "no such file; did you mean configs/smoke.py?"),
    "option": (
        ["--config=configs/smoke.py", "--config.optim.lrr=3"],
        "config.optim.lrr is no option; did you mean optim.lr?",
    ),
    "type": (["--config=configs/smoke.py", "--config.data.size=big"], "--config.data.size=big"),
    "range": (["--config=configs/smoke.py", "--config.data.size=1"], "must be at least 32"),
    "flag": (["--confg=configs/smoke.py"], "--confg is no flag; did you mean --config?"),
    "folder": (
        ["--config=configs/smoke.py", "--config.data.source=folder", "--config.data.root=nowhere"],
        "nowhere/train_v2.csv: no label file",
    ),
    "workdir": (
        ["show_batch", "--config=configs/smoke.py", "--config.workdir=/dev/null/x"],
        "config.workdir = /dev/null/x: cannot be written to",
    ),
    "journey": (
        ["journey", "--config=configs/demo.py", "--config.workdir=runs/x"],
        "config.workdir is each stage's own",
    ),
    "no py": (["--config", "configs/stage1"], "no such file; did you mean configs/stage1.py?"),
    "stage": (["--config", "configs/demo.py:stage3"], "no such stage; did you mean stage"),
    "no weights": (
        ["--config=configs/smoke.py", "--config.model.weights=a.safetensors"], "no such file"
    ),
    "no first stage": (
        ["--config=configs/smoke.py", "--config.init_from=nowhere"], "nowhere: no latest"
    ),
    "no run": (
        ["evaluate", "--config=configs/smoke.py", "--config.workdir=nowhere"], "nowhere: no best",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_get_one_line_and_status_2(case):
    arguments, message = REFUSED[case]
    ended = subprocess.run(
        [sys.executable, "-m", "planet_jax.main", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=os.environ | {"JAX_PLATFORMS": ""},  # as users have it
    )  # fmt: skip
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
