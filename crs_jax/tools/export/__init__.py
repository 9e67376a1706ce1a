"""A trained recommender as a folder in Hugging Face's form, and its model card."""

from __future__ import annotations

import pathlib

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import read_json

ABOUT = "crs_jax.json"


def shared_model(folder: pathlib.Path) -> str:
    """The policy, ppo or sft, that an exported folder holds; empty for any other folder, a part of one included."""
    if not (folder / ABOUT).is_file():
        return ""
    model = read_json(folder / ABOUT).get("model")
    if model not in ("ppo", "sft"):
        raise InputError(f"{folder / ABOUT}: model is {model!r:.80}, expected ppo or sft")
    return model
