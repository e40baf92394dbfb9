import itertools

import numpy as np
import pytest
from conftest import needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_jax.score import metrics


@needs_shared
@pytest.mark.parametrize("case", [0, 1])
def test_scores_are_fastais(reference, arrays, case):
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


def test_a_chip_with_nothing_scores_nothing():
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
    figures = metrics.per_class(p, targets)
    assert figures["precision"].tolist() == [0.5, 0]
    assert figures["recall"].tolist() == [0.5, 0]
    assert figures["fbeta"].tolist() == [0.5, 0]
    assert figures["support"].tolist() == [2, 0]
