"""Attribute a label's logit to the cells of the last feature map, by HiResCAM.

HiResCAM (Draelos and Carin 2020, arXiv:2011.08891) multiplies activations by the logit's gradient
and sums over channels. Grad-CAM averages the gradients over the cells first, and can so mark cells
that the network did not use. In inference our head is piecewise linear: the map's sum is the logit,
less what the head's biases add.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from planet_jax.model.classifier import Classifier, Head, Variables


def features(
    model: Classifier, variables: Variables, chips: UInt8[Array, "n s s 3"]
) -> Float[Array, "n h w c"]:
    """Return the backbone's last feature map, with running statistics."""
    _, captured = model.apply(
        variables, chips, train=False, mutable="intermediates",
        capture_intermediates=lambda module, _: module.name == "backbone",
    )  # fmt: skip
    (feature_map,) = captured["intermediates"]["backbone"]["__call__"]
    return feature_map


def head_logits(
    model: Classifier, variables: Variables, features: Float[Array, "n h w c"]
) -> Float[Array, "n classes"]:
    """Return the logits of feature maps, with running statistics and no dropout.

    Labels in `model.exclusive` have the head's own logits here, before `classifier.exclude`.
    """
    head = Head(model.classes, precision=model.precision)
    own = {kind: tree["head"] for kind, tree in variables.items()}
    logits: Any = head.apply(own, features, train=False, batch_indices=None)
    return logits


def label_maps(
    model: Classifier,
    variables: Variables,
    features: Float[Array, "n h w c"],
    labels: Int[Array, "n k"],
) -> tuple[Float[Array, "n k h w"], Float[Array, "n k"]]:
    """Return each label's map, and the rest of its logit: logit = sum of the map + rest.

    `labels` are k indices of classes for each chip.
    """

    def maps(x: Float[Array, "h w c"], labels: Int[Array, " k"]) -> tuple[Array, Array]:
        logits, pull_back = jax.vjp(lambda x: head_logits(model, variables, x[None])[0, labels], x)
        (gradients,) = jax.vmap(pull_back)(jnp.eye(len(labels), dtype=logits.dtype))
        cells = (gradients * x).sum(-1)
        return cells, logits - cells.sum((1, 2))

    return jax.vmap(maps)(features, labels)
