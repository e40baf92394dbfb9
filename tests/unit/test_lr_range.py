import numpy as np
import pytest

from planet_jax.runtime.errors import RunFailed
from planet_jax.train import lr_range
from tests.support import needs_shared


@needs_shared
def test_rates_are_fastais(reference):
    expected = reference["lr_find"]["lrs"]
    np.testing.assert_allclose(
        lr_range.range_rates(100, 1e-7, 10)[: len(expected)], expected, rtol=1e-9
    )


@needs_shared
def test_suggestions_on_fastais_own_curve(reference):
    curve = reference["lr_find"]
    lrs, losses = np.array(curve["lrs"]), np.array(curve["losses"])
    steepest, tenth = lr_range.suggest(lrs, losses)
    assert steepest == pytest.approx(curve["min_grad_lr"], rel=1e-6)
    # fastai prints only three digits of the second suggestion, so compute it by the rule
    best = min(range(10, len(losses) - 5), key=losses.__getitem__)
    assert tenth == pytest.approx(lrs[best] / 10)


def test_a_curve_that_is_too_short_is_said_to_be():
    with pytest.raises(RunFailed, match="16 points are too few"):
        lr_range.suggest(np.geomspace(1e-7, 1, 16), np.ones(16))


class FakeStage:
    """A fake stage whose losses are given."""

    steps_per_epoch = 5

    def __init__(self, config, losses):
        self.config, self.losses = config, losses
        self.rates = []

    def train_batches(self, epochs):
        return iter([{"chips": np.zeros((4, 1))}] * epochs * self.steps_per_epoch)

    def train_step(self, state, batch, lr, beta1):
        self.rates.append({"lr": lr, "beta1": beta1})
        state["w"] += 1  # in place, like a step that donates its state
        return state, self.losses[len(self.rates) - 1]


def run(losses):
    from planet_jax.config import get_config

    stage, state = FakeStage(get_config(), losses), {"w": np.zeros(3)}
    lrs, smoothed = lr_range.run(stage, state)
    assert (state["w"] == 0).all()
    return stage, lrs, smoothed


def test_momentum_stays_and_losses_are_smoothed_as_fastai_does():
    losses = np.linspace(1, 0.5, 100)
    stage, lrs, smoothed = run(losses)
    assert len(lrs) == 100
    assert {float(rates["beta1"]) for rates in stage.rates} == {0.9}
    np.testing.assert_allclose(
        [rates["lr"] for rates in stage.rates], lrs[:, None] * np.ones(3), rtol=1e-6
    )
    weights = 0.98 ** np.arange(10)[::-1]
    assert smoothed[9] == pytest.approx((losses[:10] * weights).sum() / weights.sum())


@pytest.mark.parametrize("bad", [1e6, np.nan, np.inf])
def test_it_stops_when_the_loss_explodes(bad):
    _, lrs, smoothed = run([1.0] * 40 + [bad] * 60)
    kept = 41 if np.isfinite(bad) else 40  # fastai keeps the point that made it stop
    assert len(lrs) == len(smoothed) == kept
    assert np.isfinite(smoothed).all()
