"""Every option at its default; planet_jax/config.py lists each with its unit and reason."""

from planet_jax.config import get_config

__all__ = ["get_config"]
