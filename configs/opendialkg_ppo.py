"""OpenDialKG: recommendations of movies and books over a knowledge graph (Moon et al. 2019); no times, no likes.

GPT-2 medium from the hub, for a GPU or TPU; the sentiment classifier needs the extra `roberta`:
  python -m crs_jax.main --config=configs/opendialkg_ppo.py --config.data.dir=FOLDER

From nothing, without a hub, for a CPU with two cores:
  python -m crs_jax.main --config=configs/opendialkg_ppo.py:scratch --config.data.dir=FOLDER

All stages on a sample, for a CPU with two cores:
  python -m crs_jax.main --config=configs/opendialkg_ppo.py:tiny --config.data.dir=FOLDER

FOLDER holds the official opendialkg.csv, or its movie dialogues by turn: train.jsonl, valid.jsonl and items.json.
`--config.data.domain=books` takes the dialogues about books (books_dialogues.jsonl, or the CSV).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import variants


def get_config(variant: str = "") -> ConfigDict:
    c = variants.get_config("opendialkg_ppo.py", variant)
    c.data.dataset = "opendialkg"
    c.data.validation_dialogues = 300 if variant != "tiny" else 100
    c.lock()
    return c
