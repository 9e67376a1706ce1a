"""ReDial: movie recommendations between two people (Li et al. 2018), with times of messages and what was liked.

GPT-2 medium from the hub, for a GPU or TPU; the sentiment classifier needs the extra `roberta`:
  python -m crs_jax.main --config=configs/redial_ppo.py

From nothing, without a hub, for a CPU with two cores:
  python -m crs_jax.main --config=configs/redial_ppo.py:scratch --config.data.dir=FOLDER

Last run of :scratch with --config.stages=sft,evaluate: 38 to 42 minutes a seed on one core that was partly shared, 4.3M
parameters, 3,331 training dialogues, seeds 0, 1, 2, commit ae99fb6: test, fresh targets, full catalogue, mean
HR@1/10/50 .040/.195/.383.

All stages on a sample, for a CPU with two cores:
  python -m crs_jax.main --config=configs/redial_ppo.py:tiny --config.data.dir=FOLDER

FOLDER holds ReDial's official train_data.jsonl, test_data.jsonl and movies_with_mentions.csv, and where you have it
movies_metadata.json (genres, plots and people). Without it the dialogues come from the hub, and genres and people from
--config.data.metadata=FILE, which `python -m crs_jax.data.imdb` makes of IMDb's tables.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import variants


def get_config(variant: str = "") -> ConfigDict:
    c = variants.get_config("redial_ppo.py", variant)
    c.data.dataset = "redial"
    if not variant:
        c.data.hub = "community-datasets/re_dial"
    c.lock()
    return c
