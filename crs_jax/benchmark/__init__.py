"""How fast the program is: `python -m crs_jax.benchmark` (see `__main__.py`)."""
