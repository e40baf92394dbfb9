"""Every knob at its default: see planet_jax/config.py, where each stands with its unit and why."""

from planet_jax.config import get_config

__all__ = ["get_config"]
