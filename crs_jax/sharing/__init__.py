"""A trained recommender as a folder in Hugging Face's form, and its model card."""

from __future__ import annotations

import pathlib

from crs_jax.metrics import read_json

ABOUT = "crs_jax.json"


def shared_model(folder: pathlib.Path) -> str:
    """The policy, ppo or sft, that an exported folder holds; empty for any other folder, a part of one included."""
    return read_json(folder / ABOUT).get("model", "") if (folder / ABOUT).is_file() else ""
