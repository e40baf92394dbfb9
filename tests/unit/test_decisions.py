"""Test decisions against brute force over all label sets and all thresholds."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _SigmoidCalibration

from planet_jax.data.labels import read_labels
from planet_jax.score import calibration, decisions, metrics
from planet_jax.score.expected_fbeta import _nodes, best_expected_fbeta, expected_scores
from planet_jax.score.weather import obey_weather, weather_of
from tests.support import SHARED, needs_shared

SKY = ("bare_ground", "clear", "cloudy", "haze", "partly_cloudy", "water")
seeds = st.integers(0, 2**32 - 1)


def all_sets(classes):
    return np.array(list(itertools.product((False, True), repeat=classes)))


def expected_fbeta(sets, p, beta=2.0, chances=None):
    """Return the expected F-beta of each set, summed over every possible truth."""
    truths = all_sets(len(p))
    chances = np.where(truths, p, 1 - p).prod(1) if chances is None else chances
    scores = [metrics.fbeta_per_chip(np.tile(s, (len(truths), 1)), truths, beta) for s in sets]
    return np.array(scores) @ chances


def draw_probabilities(seed, n, classes):
    """Draw probabilities with many ties, zeros and ones."""
    rng = np.random.default_rng(seed)
    p = rng.random((n, classes)) ** rng.choice([0.3, 1, 5])
    return np.where(rng.random((n, classes)) < 0.4, rng.choice([0, 0.2, 0.5, 1], p.shape), p)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), st.sampled_from([0.5, 1.0, 2.0]))
def test_no_set_of_labels_has_a_higher_expected_fbeta(seed, classes, beta):
    p = draw_probabilities(seed, 4, classes)
    chosen = best_expected_fbeta(p, beta)
    sets = all_sets(classes)
    for row, labels in zip(p, chosen, strict=True):
        best = expected_fbeta(sets, row, beta).max()
        assert expected_fbeta([labels], row, beta)[0] == pytest.approx(best, abs=1e-8)


def exact_scores(p, beta=2.0):
    """Return the expected F-beta of the first 1, 2, ... labels from the distributions of counts."""

    def counts(p):
        return functools.reduce(lambda a, q: np.convolve(a, [1 - q, q]), p, np.ones(1))

    scores = []
    for k in range(1, len(p) + 1):
        hits, others = np.ogrid[: k + 1, : len(p) - k + 1]
        chances = np.outer(counts(p[:k]), counts(p[k:]))
        scores.append(((1 + beta**2) * hits / (beta**2 * (hits + others) + k) * chances).sum())
    return np.array(scores)


@pytest.mark.parametrize(("classes", "power"), [(40, 1), (60, 20)])
def test_the_quadrature_is_exact_for_many_labels(classes, power):
    p = np.sort(np.random.default_rng(power).random(classes) ** power)[::-1]
    ours = expected_scores(p[None], 2.0, np.zeros(1), np.ones(1), extra=0)[0]
    np.testing.assert_allclose(ours[1:], exact_scores(p), rtol=1e-9)
    chosen = best_expected_fbeta(p[None])[0]
    assert chosen.tolist() == [i <= exact_scores(p).argmax() for i in range(classes)]


@pytest.mark.parametrize("labels", [2, 17, 60, 500, 2000])
def test_the_quadrature_integrates_every_monomial(labels):
    v, weights = _nodes(labels, 2.0)
    powers = np.arange(0, 5 * labels, max(labels // 60, 1))
    integrals = (weights * v ** powers[:, None]).sum(1)
    np.testing.assert_allclose(integrals * (powers + 1), 1, rtol=1e-9)


def chances_under_the_rule(p, weather):
    """Return the probability of every truth: one weather tag, and others unless it is cloudy."""
    total = p[list(weather.columns)].sum()
    sky = {c: p[c] / total if total else 0.25 for c in weather.columns}
    rest = [c for c in range(len(p)) if c not in weather.columns]
    not_cloudy = 1 - sky[weather.cloudy]
    chances = []
    for truth in all_sets(len(p)):
        tags = [c for c in weather.columns if truth[c]]
        if len(tags) != 1 or (tags == [weather.cloudy] and truth.sum() > 1):
            chances.append(0.0)
        elif tags == [weather.cloudy]:
            chances.append(sky[weather.cloudy])
        else:
            r = [min(p[c] / not_cloudy, 1) if not_cloudy else 0 for c in rest]
            chances.append(
                sky[tags[0]]
                * np.prod([a if truth[c] else 1 - a for c, a in zip(rest, r, strict=True)])
            )
    return np.array(chances)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_no_set_that_obeys_the_weather_is_better(seed):
    weather = weather_of(SKY)
    p = draw_probabilities(seed, 4, len(SKY))
    chosen = best_expected_fbeta(p, weather=weather)
    sets = all_sets(len(SKY))
    obey = sets[:, weather.columns].sum(1) == 1
    obey &= ~sets[:, weather.cloudy] | (sets.sum(1) == 1)
    for row, labels in zip(p, chosen, strict=True):
        assert any((labels == s).all() for s in sets[obey])
        chances = chances_under_the_rule(row, weather)
        assert chances.sum() == pytest.approx(1)
        best = expected_fbeta(sets[obey], row, chances=chances).max()
        score = expected_fbeta([labels], row, chances=chances)[0]
        assert score == pytest.approx(best, abs=1e-8)


def test_no_threshold_beats_expected_f2_on_independent_labels():
    """Use 20,000 chips with known probabilities; even thresholds fitted to these chips lose."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 1.5, (20_000, 8)) * rng.random(8)
    targets = (rng.random(p.shape) < p).astype(np.uint8)

    def score(predicted):
        return metrics.fbeta_per_chip(predicted, targets > 0).mean()

    best = score(best_expected_fbeta(p))
    assert best > max(score(p > t) for t in np.linspace(0, 1, 51)) + 0.005
    assert best > score(p > decisions.fit_thresholds(p, targets)) + 0.002


def test_improbable_labels_are_not_predicted_and_certain_ones_are():
    p = np.array([[0, 0, 0.0], [1, 0, 0.0], [0.01, 0, 0]])
    chosen = best_expected_fbeta(p)
    assert chosen.tolist() == [[False] * 3, [True, False, False], [True, False, False]]
    assert best_expected_fbeta(p[:0]).shape == (0, 3)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 12))
def test_one_class_gets_the_best_possible_threshold(seed, n):
    rng = np.random.default_rng(seed)
    p, targets = draw_probabilities(seed, n, 1), rng.integers(0, 2, (n, 1)).astype(np.uint8)
    threshold = decisions.fit_thresholds(p, targets)
    cuts = np.concatenate([p[:, 0], [0, 1]])  # every possible cut
    best = max(metrics.fbeta(p, targets, t) for t in cuts)
    assert metrics.fbeta(p, targets, threshold) == pytest.approx(best, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.05, 0.9))
def test_fitted_thresholds_never_score_less_and_no_single_change_helps(seed, start):
    rng = np.random.default_rng(seed)
    p = draw_probabilities(seed, 30, 4)
    targets = (rng.random(p.shape) < 0.3).astype(np.uint8)
    thresholds = decisions.fit_thresholds(p, targets, start)
    best = metrics.fbeta(p, targets, thresholds)
    assert best >= metrics.fbeta(p, targets, start) - 1e-12
    for c, cut in itertools.product(range(4), np.append(p.ravel(), 1)):
        changed = thresholds.copy()
        changed[c] = cut
        assert metrics.fbeta(p, targets, changed) <= best + 1e-8


def test_cross_fitting_does_not_use_a_chips_own_labels():
    """On noise, fitted thresholds gain only on the chips that they were fitted to."""
    rng = np.random.default_rng(1)
    p, targets = rng.random((200, 6)), (rng.random((200, 6)) < 0.2).astype(np.uint8)
    fold = decisions.folds(rng, 200, 5)
    assert np.bincount(fold).tolist() == [40] * 5

    def fit(p, targets):
        return decisions.fit("per_class", p, targets, threshold=0)

    crossed = decisions.cross_fit(fit, p, targets, fold)
    by_hand = fit(p[fold != 3], targets[fold != 3])(p[fold == 3])
    np.testing.assert_array_equal(crossed[fold == 3], by_hand)
    everything, same, other = (
        metrics.fbeta_per_chip(a, targets > 0).mean() for a in (p > 0, fit(p, targets)(p), crossed)
    )
    assert same > everything + 0.003
    assert other < everything
    flipped = targets.copy()
    flipped[fold == 3] ^= 1
    again = decisions.cross_fit(fit, p, flipped, fold)
    np.testing.assert_array_equal(crossed[fold == 3], again[fold == 3])


def test_weather_rule():
    weather = weather_of(SKY)
    p = np.array([[0.9, 0.5, 0.4, 0, 0.45, 0.3], [0.9, 0.1, 0.6, 0.2, 0.3, 0.9], [0.0] * 6])
    decision = decisions.Decision("threshold", np.full(6, 0.2), weather=weather)
    tags = [[tag for tag, chosen in zip(SKY, row, strict=True) if chosen] for row in decision(p)]
    assert tags == [["bare_ground", "clear", "water"], ["cloudy"], ["clear"]]
    assert weather_of(("clear", "haze")) is None


@needs_shared
def test_competition_labels_obey_the_weather_rule():
    """All of the 40,479 chips obey it except one chip, which has no weather tag."""
    labels = read_labels(SHARED / "data" / "planet")
    weather, true = weather_of(labels.classes), labels.targets > 0
    obeying = obey_weather(true, labels.targets.astype(float), weather)
    broken = np.flatnonzero((obeying != true).any(1))
    assert [labels.names[row] for row in broken] == ["train_24448"]


def test_calibration_equals_scikit_learns():
    """scikit-learn fits the same two numbers, with the same prior."""
    rng = np.random.default_rng(2)
    p = rng.random((500, 3))
    targets = (rng.random(p.shape) < p ** [1.5, 2, 3]).astype(np.uint8)
    ours = calibration.fit_calibration(p, targets)
    logits = np.log(p / (1 - p))
    for c in range(3):
        theirs = _SigmoidCalibration().fit(logits[:, c], targets[:, c])
        fitted = ours.slope[c], ours.intercept[c]
        assert fitted == pytest.approx((-theirs.a_, -theirs.b_), abs=2e-4)
    calibrated = ours(p)
    assert calibration.calibration_error(calibrated, targets) < 0.05
    assert calibration.calibration_error(p, targets) > 0.09
    assert (calibration.brier(calibrated, targets) < calibration.brier(p, targets) + 1e-3).all()


def test_calibration_of_certain_probabilities_and_of_a_class_without_chips():
    p = np.array([[0, 1.0], [1, 1.0], [1, 0.0], [0, 0.0]])
    calibrated = calibration.fit_calibration(p, np.array([[0, 0], [1, 0], [1, 0], [0, 0]]))(p)
    assert np.isfinite(calibrated).all()
    assert (np.diff(calibrated[:2, 0]) > 0).all()
    reversed_order = np.array([[0.9], [0.8], [0.2], [0.1]])
    calibrated_reversed = calibration.fit_calibration(
        reversed_order, np.array([[0], [0], [1], [1]])
    )(reversed_order)
    np.testing.assert_allclose(
        calibrated_reversed, 0.5
    )  # the mean of Platt's targets, because slopes are never negative
    assert calibrated[:, 1].max() < 0.5
