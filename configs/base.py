"""Return every option at its default; planet_jax/config.py lists and explains them."""

from planet_jax.config import get_config

__all__ = ["get_config"]
