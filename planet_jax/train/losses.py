"""The training loss: the notebook's binary cross-entropy, and what the options add to it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

BETA = 2.0  # of the F score


@dataclass(frozen=True)
class Loss:
    """A loss of logits and multi-hot targets; at its defaults, mean binary cross-entropy.

    Attributes:
      label_smoothing: share of a target that moves to 1/2; in `exclusive`, to all its columns
        (Szegedy et al. 2016, arXiv:1512.00567).
      gamma: focusing exponents of present and of absent labels, which weaken the loss of labels
        that are already right. (2, 2) is the focal loss (Lin et al. 2017, arXiv:1708.02002).
      margin: absent labels with a lower probability have no loss. With gamma (0, 4) and margin 0.05
        this is the asymmetric loss (Ben-Baruch et al. 2020, arXiv:2009.14119).
      soft_f2: weight of 1 - F2, where F2 has each chip's probabilities in place of labels.
      present_weights: of each class, for its present labels; () for 1.
      exclusive: columns whose sigmoids are a softmax (`model.classifier.exclude`). Their loss is
        the softmax's cross-entropy, that of present labels alone.
    """

    label_smoothing: float = 0.0
    gamma: tuple[float, ...] = (0.0, 0.0)
    margin: float = 0.0
    soft_f2: float = 0.0
    present_weights: tuple[float, ...] = ()
    exclusive: tuple[int, ...] = ()

    def __call__(
        self, logits: Float[Array, "n classes"], targets: UInt8[Array, "n classes"]
    ) -> Float[Array, ""]:
        """Return the mean over chips and classes, plus `soft_f2` times the mean over chips."""
        if self == Loss():
            return optax.sigmoid_binary_cross_entropy(logits, targets).mean()
        smooth = self._smoothed(targets.astype(logits.dtype))
        present = smooth * _focused(logits, self.gamma[0])
        absent = (1 - smooth) * _focused(-logits, self.gamma[1], self.margin)
        if self.present_weights:
            present *= np.array(self.present_weights, logits.dtype)
        if self.exclusive:
            absent = absent.at[:, list(self.exclusive)].set(0)
        loss = (present + absent).mean()
        if self.soft_f2:
            loss += self.soft_f2 * (1 - soft_fbeta(logits, targets)).mean()
        return loss

    def _smoothed(self, targets: Float[Array, "n classes"]) -> Float[Array, "n classes"]:
        center = np.full(targets.shape[1], 1 / 2, targets.dtype)
        center[list(self.exclusive)] = 1 / max(len(self.exclusive), 1)
        return targets + self.label_smoothing * (center - targets)


def _focused(
    logits: Float[Array, "n classes"], gamma: float, margin: float = 0.0
) -> Float[Array, "n classes"]:
    """Return -(1 - q)^gamma log q with q = min(sigmoid(logits) + margin, 1).

    Gradients are finite for all logits and exponents.
    """
    if not margin:
        log_q = jax.nn.log_sigmoid(logits)
        return -jnp.exp(gamma * jax.nn.log_sigmoid(-logits)) * log_q if gamma else -log_q
    wrong = jax.nn.sigmoid(-logits) - margin  # 1 - q, where above 0
    # The second `where` alone would give 0 * inf in the gradient.
    inside = jnp.where(wrong > 0, jnp.minimum(wrong, 1 - jnp.finfo(wrong.dtype).eps), 1 / 2)
    return jnp.where(wrong > 0, -(inside**gamma) * jnp.log1p(-inside), 0)


def soft_fbeta(
    logits: Float[Array, "n classes"], targets: UInt8[Array, "n classes"]
) -> Float[Array, " n"]:
    """Return each chip's F2 with probabilities in place of predicted labels; 0 without a label."""
    probabilities = jax.nn.sigmoid(logits)
    hits = (probabilities * targets).sum(1)
    # 1e-6 keeps the gradient finite where a chip has no label and all probabilities are 0.
    return (1 + BETA**2) * hits / (BETA**2 * targets.sum(1) + probabilities.sum(1) + 1e-6)
