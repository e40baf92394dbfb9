"""Multi-label classification of satellite chips in pure JAX: the planet notebook and past it."""
