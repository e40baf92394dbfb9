"""Test scores, intervals and counts against fastai, scikit-learn and values computed by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from planet_jax.score import calibration, co_occurrence, intervals, metrics
from tests.support import needs_shared


@needs_shared
@pytest.mark.parametrize("case", [0, 1])
def test_scores_equal_fastais(reference, arrays, case):
    expected = reference["metrics"][case]
    logits, targets = arrays[f"metric_logits_{case}"], arrays[f"metric_targets_{case}"]
    p = metrics.sigmoid(logits)
    scores = {
        "accuracy_thresh": metrics.accuracy_thresh(p, targets),
        "fbeta": metrics.fbeta(p, targets),
        "bce": metrics.binary_cross_entropy(logits, targets),
        "fbeta_05": metrics.fbeta(p, targets, threshold=0.5),
    }
    assert scores == pytest.approx(expected, abs=2e-6)  # fastai computes in float32


def test_chip_without_labels_scores_0():
    nothing = np.zeros((1, 3))
    assert metrics.fbeta(nothing, nothing) == 0
    assert metrics.fbeta(np.ones((1, 3)), nothing) == 0


def test_extreme_logits_are_finite():
    logits, targets = np.array([[1e4, -1e4]]), np.array([[0, 1]])
    assert metrics.binary_cross_entropy(logits, targets) == 1e4
    assert metrics.sigmoid(logits).tolist() == [[1, 0]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_no_other_set_beats_the_best_constant(classes, n, seed):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, classes)) < rng.random(classes)).astype(np.uint8)
    best, chosen = metrics.best_constant(targets)
    by_force = max(
        metrics.fbeta(np.tile(labels, (n, 1)).astype(float), targets)
        for labels in itertools.product((0, 1), repeat=classes)
    )
    assert best == pytest.approx(by_force, abs=1e-7)
    assert metrics.fbeta(np.tile(chosen, (n, 1)).astype(float), targets) == best


def test_per_class_by_hand():
    targets = np.array([[1, 0], [1, 0], [0, 0]])
    p = np.array([[0.9, 0.1], [0.1, 0.1], [0.9, 0.1]])
    figures = metrics.per_class(p > 0.2, p, targets)
    assert figures["precision"].tolist() == [0.5, 0]
    assert figures["recall"].tolist() == [0.5, 0]
    assert figures["fbeta"].tolist() == [0.5, 0]
    assert figures["average_precision"].tolist() == pytest.approx([0.5 * 0.5 + 0.5 * 2 / 3, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_per_class_scores_equal_scikit_learns(n, seed):
    """Test with ties, and with chips that count several times or not at all."""
    rng = np.random.default_rng(seed)
    p = np.where(rng.random((n, 3)) < 0.5, rng.choice([0, 0.2, 0.5, 1], (n, 3)), rng.random((n, 3)))
    targets = (rng.random((n, 3)) < [0.1, 0.5, 0.9]).astype(np.uint8)
    weights = np.concatenate([np.ones((1, n), np.float32), intervals.resamples(rng, n, 2)])
    ours = metrics.per_class(p > 0.2, p, targets, weights)
    for r, w in enumerate(weights):
        precision, recall, fbeta, _ = sklearn_metrics.precision_recall_fscore_support(
            targets, p > 0.2, beta=2, sample_weight=w, zero_division=0
        )
        expected = {"precision": precision, "recall": recall, "fbeta": fbeta}
        for name, values in expected.items():
            np.testing.assert_allclose(ours[name][r], values, atol=1e-6)
        for c in np.flatnonzero(w @ targets):
            area = sklearn_metrics.average_precision_score(targets[:, c], p[:, c], sample_weight=w)
            assert ours["average_precision"][r, c] == pytest.approx(area, abs=1e-6)


def test_scores_equal_scikit_learns():
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((200, 5))
    p, targets = metrics.sigmoid(logits), rng.integers(0, 2, (200, 5)).astype(np.uint8)
    targets[:, 0] = 1  # so that no chip is without a label
    theirs = sklearn_metrics.fbeta_score(targets, p > 0.2, beta=2, average="samples")
    assert metrics.fbeta(p, targets) == pytest.approx(theirs, abs=1e-8)
    entries = targets.ravel(), p.ravel()
    assert metrics.binary_cross_entropy(logits, targets) == pytest.approx(
        sklearn_metrics.log_loss(*entries)
    )
    assert calibration.brier(p, targets).mean() == pytest.approx(
        sklearn_metrics.brier_score_loss(*entries)
    )
    shares, means = calibration_curve(*entries, n_bins=10)
    ours = calibration.reliability(p, targets)
    np.testing.assert_allclose([row["share"] for row in ours], shares)
    np.testing.assert_allclose([row["probability"] for row in ours], means)
    assert sum(row["entries"] for row in ours) == targets.size


def test_interval_of_a_mean_is_196_standard_errors():
    """The ends lie 1.96 standard errors from the mean, and 5% of intervals miss the true mean."""
    rng = np.random.default_rng(0)
    values = rng.exponential(size=400)
    low, high = intervals.mean_interval(values, intervals.resamples(rng, 400, 4000))
    error = values.std() / 20
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.3 * error
    )
    missed = 0
    for _ in range(300):
        values = rng.standard_normal(50)
        low, high = intervals.mean_interval(values, intervals.resamples(rng, 50, 200))
        missed += not low <= 0 <= high
    assert 5 <= missed <= 35  # 5% of 300 is 15; a bootstrap of 50 values misses slightly more often


def test_resamples_have_the_sample_size_and_are_reproducible():
    weights = intervals.resamples(np.random.default_rng(3), 20, 500)
    assert (weights.sum(1) == 20).all()
    assert weights.mean(0) == pytest.approx(np.ones(20), abs=0.2)
    again = intervals.resamples(np.random.default_rng(3), 20, 500)
    np.testing.assert_array_equal(weights, again)


def test_co_occurrence_by_hand():
    true = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]], bool)
    predicted = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 0], [0, 1, 1]], bool)
    assert co_occurrence.swaps(predicted, true, 10) == [
        (0, 1, 2)
    ]  # a missed, b predicted, on two chips
    assert co_occurrence.pairs(predicted, true, 10) == [(1, 2, 0, 2), (0, 2, 1, 0), (0, 1, 1, 1)]
