"""ReDial: movie recommendations between two people (Li et al. 2018), with times of messages and what was liked.

GPT-2 medium from the hub, for a GPU or TPU; the sentiment classifier needs the extra `roberta`:
  python -m crs_jax.main --config=configs/redial_ppo.py

From nothing, without a hub, for a CPU with two cores:
  python -m crs_jax.main --config=configs/redial_ppo.py:scratch --config.data.dir=FOLDER

Last run of :scratch: 55 minutes on two cores that did other work besides, 4.2M parameters, 3,331 training dialogues,
seed 0, commits 31e5b79 (sft) and 05399cd: test, fresh targets, full catalogue, HR@1/10/50 .026/.130/.294 for sft and
.015/.113/.267 for ppo.

All stages on a sample, for a CPU with two cores:
  python -m crs_jax.main --config=configs/redial_ppo.py:tiny --config.data.dir=FOLDER

FOLDER holds ReDial's official train_data.jsonl, test_data.jsonl and movies_with_mentions.csv, and where you have it
movies_metadata.json (genres, plots and people). Without it the dialogues come from the hub.
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
