"""What keeps PPO stable, on ReDial: the cells of `stability.py`, from a supervised model that reads words alone.

  python -m crs_jax.sweep --sweep=configs/sweeps/stability_redial.py --out=runs/stability --config.data.dir=FOLDER

The paper's setting with half as many iterations, and 400 of the test dialogues. The supervised and the reward model are
made once a seed, in 40 minutes on one core, then a run takes about ten.
"""

from configs.sweeps.stability import MEASURES, cells
from crs_jax.sweep import Sweep

METRICS = ("hr@5", "hr@10", "ndcg@5")

SWEEP = Sweep(
    config="configs/redial_ppo.py:paper",
    fixed={
        "data.max_eval_dialogues": 400,
        "ppo.iterations": 30,
        "evaluation.generate": 200,
    },
    cells=cells(1e-4, 0.5, 0.05),
    measures={
        **{f"{m.upper()} {row}": f"ranking.{row}.fresh.full.{m}" for m in METRICS for row in ("sft", "ppo")},
        "BLEU-4 ppo": "text.ppo.bleu-4",
        **MEASURES,
    },
    reference="default",
    seeds=(0, 1),
)
