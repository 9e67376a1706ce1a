"""The supervised model on ReDial's test split, three seeds, beside the tuned mix: the table in the README.

  python -m crs_jax.sweep --sweep=configs/sweeps/sft.py --out=runs/sft --config.data.dir=FOLDER

About 35 minutes a seed on one core.
"""

from crs_jax.sweep import Sweep

METRICS = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@5")

SWEEP = Sweep(
    config="configs/redial_ppo.py:scratch",
    fixed={"stages": "sft,evaluate"},
    cells={"default": {}},
    measures={
        f"{row} {metric}": f"ranking.{row}.fresh.full.{metric}"
        for row in ("sft", "cooccurrence", "mix")
        for metric in METRICS
    },
    reference="default",
)
