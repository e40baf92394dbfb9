import pytest

from planet_jax.config import get_config, validate
from planet_jax.config_file import load
from planet_jax.results.journey_tables import headline
from planet_jax.runtime.errors import BadInput
from planet_jax.train.chain import load_stages, plan


def stages():
    first, second = get_config(), get_config()
    first.workdir, second.workdir, second.init_from = "runs/a", "runs/b", "runs/a"
    return [first, second]


def journey(**options):
    config = get_config()
    config.workdir, config.stages = "runs/average", ("a", "b")
    config.journey.update(options)
    return config


def test_a_plain_journey_is_its_stages():
    planned = plan(journey(), stages())
    assert [stage.workdir for stage in planned.chains[""]] == ["runs/a", "runs/b"]
    assert planned.final is planned.chains[""][-1]
    assert not planned.is_ensemble


def test_each_fold_and_seed_has_its_own_folders():
    planned = plan(journey(folds=2, seeds=(0, 7), members=("a", "b")), stages())
    assert list(planned.chains) == [f"fold{fold}-seed{seed}" for fold in (0, 1) for seed in (0, 7)]
    first, second = planned.chains["fold1-seed7"]
    assert (first.workdir, second.workdir) == ("runs/a-fold1-seed7", "runs/b-fold1-seed7")
    assert (first.init_from, second.init_from) == ("", "runs/a-fold1-seed7")
    assert (second.data.folds, second.data.fold, second.seed) == (2, 1, 7)
    final = planned.final
    assert (final.workdir, final.init_from) == ("runs/average", "")
    names = [f"runs/{s}-fold{fold}-seed{seed}" for fold in (0, 1) for seed in (0, 7) for s in "ab"]
    assert list(final.score.ensemble) == names
    assert stages()[1].workdir == "runs/b"  # the stages themselves are not changed


def test_the_shipped_plan_averages_both_sizes_of_five_folds():
    config = load("beyond")
    planned = plan(config, [load(stage) for stage in config.stages])
    assert [len(chain) for chain in planned.chains.values()] == [4] * 5
    assert len(planned.final.score.ensemble) == 10
    assert planned.final.workdir == "runs/beyond/average"
    validate(planned.final)


def test_sizes_are_averaged_without_folds():
    planned = plan(journey(members=("a", "b")), stages())
    assert planned.final.score.ensemble == ("runs/a", "runs/b")


@pytest.mark.parametrize(
    ("options", "workdir", "message"),
    [
        ({"members": ("c",)}, "runs/average", r"members: c is not in config\.stages; valid: a, b"),
        ({"folds": 1}, "runs/average", r"journey\.folds = 1 must be 0 or at least 2"),
        ({"seeds": (3, 3)}, "runs/average", r"journey\.seeds = \(3, 3\): name each once"),
        ({"members": ("a", "b")}, "runs/b", "runs/b is a stage's; the average needs its own"),
    ],
)
def test_wrong_journeys_are_refused(options, workdir, message):
    config = journey(**options)
    config.workdir = workdir
    with pytest.raises(BadInput, match=message):
        plan(config, stages())


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        ({}, {"workdir": "runs/x"}, r"config\.workdir differs per stage"),
        ({"folds": 2}, {"data.fold": 1}, r"data\.fold is set by config\.journey\.folds; leave"),
        ({"seeds": (0, 1)}, {"seed": 3}, r"config\.seed is set by config\.journey\.seeds; leave"),
        ({"folds": 2}, {"score.split": "train"}, "a journey scores validation chips"),
    ],
)
def test_options_that_are_not_for_all_stages_are_refused(options, overrides, message):
    config = load("demo")
    config.journey.update(options)
    with pytest.raises(BadInput, match=message):
        load_stages(config, overrides)


def test_the_workdir_of_an_average_is_not_that_of_its_stages():
    config = load("demo")
    config.journey.folds = 2
    changed = load_stages(config, {"workdir": "runs/mine", "train.epochs": 3})
    assert changed[0].workdir == "runs/demo/stage1"
    assert changed[0].train.epochs == 3


def test_a_fold_cannot_start_from_a_run_that_trained_on_other_folds():
    only_second = stages()[1:]
    with pytest.raises(BadInput, match=r"init_from = runs/a is a run outside the journey"):
        plan(journey(folds=2, members=("b",)), only_second)
    written_otherwise = stages()
    written_otherwise[1].init_from = "./runs/a/"
    _, second = plan(journey(folds=2), written_otherwise).chains["fold1"]
    assert second.init_from == "./runs/a-fold1"


def test_the_headline_compares_with_what_others_reached(tmp_path):
    chains = {}
    for fold, scores in enumerate([(0.92, 0.93), (0.93, 0.94)]):
        runs = [tmp_path / f"{name}-fold{fold}" for name in ("first", "second")]
        for run, fbeta in zip(runs, scores, strict=True):
            run.mkdir()
            (run / "history.csv").write_text(f"epoch,fbeta\n0,0.1\n1,{fbeta}\n")
        chains[f"fold{fold}"] = runs
    (tmp_path / "metrics.json").write_text('{"decision": {"fbeta": 0.9331}}')
    lines = headline(chains, [(128, True), (64, True)], tmp_path).splitlines()
    assert lines[1].split(maxsplit=3) == ["first", "0.9250", "0.9259", "the notebook      no"]
    assert lines[2].split() == ["second", "0.9350"]
    assert lines[3].split()[:3] == ["result", "0.9331", "0.9332"]
    assert lines[3].endswith("no")
