"""INSPIRED: sociable movie recommendations (Hayati et al. 2020), about 1,000 long dialogues; no times, no likes.

GPT-2 medium from the hub, for a GPU or TPU; the sentiment classifier needs the extra `roberta`:
  python -m crs_jax.main --config=configs/inspired_ppo.py --config.data.dir=FOLDER

From nothing, without a hub, for a CPU with two cores:
  python -m crs_jax.main --config=configs/inspired_ppo.py:scratch --config.data.dir=FOLDER

All stages on a sample, for a CPU with two cores:
  python -m crs_jax.main --config=configs/inspired_ppo.py:tiny --config.data.dir=FOLDER

FOLDER holds train.jsonl and dev.jsonl, a dialogue a line.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import variants


def get_config(variant: str = "") -> ConfigDict:
    c = variants.get_config("inspired_ppo.py", variant)
    c.data.dataset = "inspired"
    c.data.validation_dialogues = 80
    c.lock()
    return c
