import pytest
from hypothesis import given
from hypothesis import strategies as st

from planet_jax import config as options
from planet_jax import config_file
from planet_jax.runtime.errors import BadInput
from tests.support import ROOT

STAGES = {
    "stage1": ((1e-2, 2e-2), True, 128, ""),
    "stage2": ((1e-4, 2e-3), False, 128, "runs/stage1"),
    "stage1_256": ((1e-3, 1e-3, 1e-2), True, 256, "runs/stage2"),
    "stage2_256": ((1e-5, 2e-3), False, 256, "runs/stage1_256"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_notebooks_values(name):
    config = config_file.load(str(ROOT / "configs" / f"{name}.py"))
    optim = config.optim
    values = (optim.lr, optim.freeze, config.data.size, config.init_from)
    assert values == STAGES[name]
    assert (config.workdir, config.train.epochs, config.data.batch_size) == (f"runs/{name}", 5, 64)
    assert (config.data.source, config.model.weights) == ("kaggle", "imagenet")


def test_every_shipped_config_is_valid():
    for path in (ROOT / "configs").glob("*.py"):
        config_file.load(str(path))
    for name in STAGES:
        config_file.load(f"{ROOT / 'configs' / 'demo.py'}:{name}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data.size", 8, "config.data.size = 8 must be a whole number, at least 32"),
        ("data.size", 10**400, "at most 1,000,000,000 pixels"),
        ("data.valid_fraction", 0.0, "must be a number, above 0 and below 1"),
        ("data.valid_fraction", 1.0, "must be a number, above 0 and below 1"),
        ("augment.max_lighting", -0.1, "must be a number, at least 0 and below 1"),
        ("score.threshold", 1.1, "must be a number, at least 0 and at most 1 (a label"),
        ("data.source", "disk", "must be one of folder, sample, kaggle"),
        ("optim.lr", (), "a tuple of 1 or 2 or 3 items, each a number, above 0"),
        ("optim.lr", (1e-3, -1.0), "a tuple of 1 or 2 or 3 items, each a number, above 0"),
        ("optim.lr", ("a",), "a tuple of 1 or 2 or 3 items, each a number, above 0"),
        ("optim.lr", (float("nan"),), "a tuple of 1 or 2 or 3 items, each a number, above 0"),
        ("optim.momentum", (0.9, 1.0), "a tuple of 2 items, each a number, above 0 and below 1"),
        ("score.ensemble", ("runs/a", " "), "a tuple, each a name that is not blank (run folders"),
        ("model.name", "small", "one of resnet18, resnet34, resnet50, resnet101, resnet152, tiny"),
        ("model.name", "tiny", "tiny has no imagenet weights; set model.weights=random"),
        ("data.root", "a\0b", "a name that is not blank"),
        ("train.precision", "float16", "one of float32, bfloat16"),
        ("optim.weight_decay", float("nan"), "must be a number, at least 0"),
        ("optim.div_factor", float("inf"), "must be a number, at least 1"),
        ("workdir", " ", "a name that is not blank"),
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


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ({"count": 2}, r"need config\.hosts\.coordinator"),
        ({"coordinator": "auto", "index": 1}, r"need config\.hosts\.coordinator"),
        ({"coordinator": "vm", "count": 2}, "must be ADDRESS:PORT"),
        ({"coordinator": "vm:0", "count": 2}, "must be ADDRESS:PORT"),
        ({"coordinator": "vm:8476", "count": 2, "index": 2}, "index = 2 must be below"),
        ({"coordinator": "vm:8476"}, "index = 0 must be below"),
    ],
)
def test_options_of_hosts_that_conflict_are_refused(hosts, message):
    config = options.get_config()
    config.hosts.update(hosts)
    with pytest.raises(BadInput, match=message):
        options.validate(config)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim.cycles": 6}, r"cycles = 6 must be at most config\.train\.epochs = 5"),
        ({"model.exclusive": ("clear",)}, r"model\.exclusive: name at least two labels, each once"),
        ({"model.exclusive": ("clear", "clear")}, r"at least two labels, each once"),
    ],
)
def test_options_of_training_that_conflict_are_refused(changed, message):
    config = options.get_config()
    config.update_from_flattened_dict(changed)
    with pytest.raises(BadInput, match=message):
        options.validate(config)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("data.size", 64.0, "a whole number"),
        ("data.size", True, "a whole number"),
        ("optim.weight_decay", False, "a number"),
        ("data.decoded", 1, "True or False"),
        ("workdir", 1, "a name that is not blank"),
        ("score.ensemble", ["runs/a"], "a tuple"),
    ],
)
def test_values_of_another_type_are_refused(name, value, kind):
    with pytest.raises(BadInput, match=f"config.{name} = .* must be {kind}"):
        options.check(name, value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.optim.lrr = 3", r"mine\.py: lrr is not an option; did you mean lr\?"),
        (
            "config.score.tta = 'dihedral'",
            r"config\.score\.tta is now config\.score\.test_time",
        ),
        (
            "config.update_from_flattened_dict({'train.force': True})",
            r"now config\.train\.allow",
        ),
        ("config.data.size = 'big'", r"mine\.py: failed with TypeError: .*'size'"),
        ("config.seed = -1", r"config\.seed = -1 must be a whole number, at least 0"),
        ("1 / 0", r"mine\.py: failed with ZeroDivisionError"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(line, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from planet_jax.config import get_config as base\n"
        f"def get_config():\n    config = base()\n    {line}\n    return config\n"
    )
    with pytest.raises(BadInput, match=message):
        config_file.load(str(file))


def test_an_unknown_name_cannot_be_set():
    with pytest.raises(AttributeError):
        options.get_config().optim.learning_rate = 1.0


def test_every_default_is_accepted_and_described():
    for name, option in options.OPTIONS.items():
        options.check(name, option.default)
        assert option.help
        assert not option.choices or option.default in option.choices


@pytest.mark.parametrize("old", options.RENAMED)
def test_an_old_name_is_refused_with_the_new_one(old):
    new = options.RENAMED[old]
    assert new in options.OPTIONS
    assert old not in options.OPTIONS
    message = rf"config\.{old} is now config\.{new}$"
    with pytest.raises(BadInput, match=message):
        config_file.check_flags([f"--config.{old}=1"])
    config = options.get_config().unlock()
    section, _, last = old.rpartition(".")
    config[section][last] = 1
    with pytest.raises(BadInput, match=message):
        options.validate(config)


def test_options_of_older_runs_get_todays_names():
    saved = {"seed": 3, "score.tta": "fastai", "optim.warm_up": 0.5, "optim.lr": [1e-3]}
    translated = options.translate_saved(saved)
    assert translated.keys() == options.OPTIONS.keys()
    assert translated["seed"] == 3
    assert translated["score.test_time_augmentation"] == "fastai"
    assert translated["optim.pct_start"] == 0.5
    assert translated["optim.lr"] == [1e-3]
    assert translated["optim.momentum"] == [0.95, 0.85]  # not saved; tuples are lists in JSON
    assert translated["model.name"] == "resnet50"
    with pytest.raises(BadInput, match=r"runs/old has the option data\.sizes, which this version"):
        options.translate_saved({"data.sizes": 64}, "runs/old")


def test_what_may_change_on_a_resume():
    """No option of the network, data or training may change, because results would change."""
    free = {name for name in options.OPTIONS if options.may_change_on_resume(name)}
    assert not {name for name in free if name.startswith(("model.", "optim.", "augment."))}
    assert not free & {"seed", "data.size", "data.batch_size", "train.epochs", "train.precision"}
    assert {"workdir", "data.root", "train.save_every", "score.ensemble", "hosts.index"} <= free


def test_processes_share_all_options_but_their_own():
    config = options.get_config()
    own = {"hosts.index", "data.root", "data.cache", "data.decoded", "data.threads"}
    own.add("predict.folder")
    shared = options.shared_by_processes(config)
    assert shared["config.data.size"] == 128
    assert shared.keys() == {f"config.{name}" for name in options.OPTIONS.keys() - own}


def test_members_of_an_ensemble_keep_what_their_network_needs():
    network = {"data.size", "model.name", "model.batch_norm", "train.precision"}
    assert set(options.MEMBER_OPTIONS) == network


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4,2e-3", (1e-4, 2e-3)),
        ("1e-2", (1e-2,)),
        ("(1e-3, 1e-3, 1e-2)", (1e-3, 1e-3, 1e-2)),
        ("a,b", ("a", "b")),
        ("runs/stage-1", ("runs/stage-1",)),
        ("../x y, ../z", ("../x y", "../z")),
        ("('runs/a', 'runs/b')", ("runs/a", "runs/b")),
        ("['a']", ("a",)),
        ("", ()),
        (("a",), ("a",)),
    ],
)
def test_tuples_on_the_command_line(text, value):
    assert config_file.TupleParser().parse(text) == value


@given(
    st.sampled_from(sorted(options.OPTIONS)), st.text() | st.integers() | st.floats() | st.none()
)
def test_any_value_is_accepted_or_refused_by_name(name, value):
    try:
        options.check(name, value)
    except BadInput as error:
        message = str(error)
        assert message.startswith(f"config.{name} ")
        assert "\n" not in message
    else:  # accepted: of the default's type, finite and within the bounds
        option = options.OPTIONS[name]
        assert type(value) is type(option.default) or (type(value), type(option.default)) == (
            int,
            float,
        )
        if isinstance(value, int | float):
            assert abs(value) <= 2**32
            assert option.low is None or option.low <= value
            assert option.above is None or option.above < value
            assert option.below is None or value < option.below
        elif option.choices:
            assert value in option.choices
        elif option.required:
            assert value.strip()


def test_paths_know_the_home_and_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("UNSET", raising=False)
    config = options.get_config()
    config.workdir, config.data.cache = "~/runs/x", "$SCRATCH/${SCRATCH}c"
    config.score.ensemble = ("~/a", "b")
    options.validate(config)
    assert config.workdir == "/home/me/runs/x"
    assert config.data.cache == "/scratch//scratchc"
    assert config.score.ensemble == ("/home/me/a", "b")
    config.data.cache = "gs://bucket/cache"
    with pytest.raises(BadInput, match=r"config\.data\.cache = 'gs://bucket/cache' is a URL"):
        options.validate(config)
    config.data.cache, config.data.root = "cache", "gs://bucket/chips/"
    options.validate(config)
    assert config.data.root == "gs://bucket/chips"
    config.data.source = "sample"
    with pytest.raises(BadInput, match=r"config\.data\.root is a URL: it cannot be filled from"):
        options.validate(config)
    config.data.source = "folder"
    for path, message in {
        "gs://": "config.workdir = 'gs://' must name a folder",
        "gs://bucket/../run": "must name a folder",
        "gs://bucket/run[1]": "must name a folder",
        "gs://bucket": "config.data.root = gs://bucket/chips lies in config.workdir",
        "$UNSET/run": r"\$UNSET is not known here",
        "~no_such_user_1/run": "~no_such_user_1 is not known here",
    }.items():
        config.workdir = path
        with pytest.raises(BadInput, match=message):
            options.validate(config)
    config.workdir = str(tmp_path / "$UNSET")
    (tmp_path / "$UNSET").mkdir()
    options.validate(config)


def test_stages_are_found_beside_the_config_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    text = "from planet_jax.config import get_config"
    for name in ("mine.py", "other.py"):
        (tmp_path / "configs" / name).write_text(text)
    monkeypatch.chdir(tmp_path / "configs")
    assert config_file.load("mine.py").seed == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    named_by = str(tmp_path / "configs" / "journey.py")
    for path in ("mine.py", "configs/mine.py"):
        assert config_file.load(path, named_by=named_by).seed == 0
    with pytest.raises(BadInput, match=r"min\.py: no such file"):
        config_file.load("min.py", named_by=named_by)
