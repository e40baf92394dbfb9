"""The name under which notebooks import the conversion of torchvision's weights."""

from planet_jax.model.weights import from_torchvision as from_torchvision
