"""The paper's setting on ReDial over ten runs: five supervised and reward models, two PPO runs from each.

  python -m crs_jax.sweep --sweep=configs/sweeps/paper.py --out=runs/paper --jobs=2 --config.data.dir=FOLDER

Each figure is of fresh targets over the full catalogue. About an hour and a half for the first run of a seed on one
core, and three quarters for the second.
"""

from crs_jax.sweep import Sweep

SWEEP = Sweep(
    config="configs/redial_ppo.py:paper",
    cells={"first": {}, "second": {"ppo.seed": 1}},
    measures={
        **{f"{m} {row}": f"ranking.{row}.fresh.full.{m.lower()}" for m in ("HR@5", "NDCG@5") for row in ("sft", "ppo")},
        "HR@5 gain": "paired.ppo-sft.fresh.full.hr@5",
        "NDCG@5 gain": "paired.ppo-sft.fresh.full.ndcg@5",
        "share": "optimum.share",
        "KL": "optimum.kl",
        "recommends sft": "text.sft.recommends",
        "recommends ppo": "text.ppo.recommends",
        "BLEU-4 sft": "text.sft.bleu-4",
        "BLEU-4 ppo": "text.ppo.bleu-4",
        "warnings": "health",
    },
    reference="first",
    seeds=(20, 22, 24, 26, 28),
)
