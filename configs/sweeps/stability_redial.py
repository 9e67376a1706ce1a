"""What keeps PPO stable, on ReDial: the cells of `stability.py`, from a supervised model that reads words alone.

  python -m crs_jax.sweep --sweep=configs/sweeps/stability_redial.py --out=runs/stability --config.data.dir=FOLDER

PPO reads the evidence and its weights are those with which it gained on ReDial (README); half as many iterations, and
400 of the test dialogues. The supervised and the reward model are made once a seed, in 40 minutes on one core, then a
run takes about ten. KL targets are about half of what 60 iterations reached (1.0 nats of acts and of words).
"""

from configs.sweeps.stability import MEASURES, cells
from crs_jax.sweep import Sweep

METRICS = ("hr@5", "hr@10", "ndcg@5")
RATE = 5e-4

SWEEP = Sweep(
    config="configs/redial_ppo.py:scratch",
    fixed={
        "data.max_eval_dialogues": 400,
        "model.leave_out": "('text', 'asked', 'named', 'near', 'people')",
        "ppo.evidence": "all",
        "ppo.query_rate": 20.0,
        "ppo.recommending": True,
        "ppo.learning_rate": RATE,
        "ppo.act_kl": 0.3,
        "ppo.word_kl": 0.5,
        "ppo.iterations": 30,
        "reward.alpha": 0.0,
        "evaluation.generate": 200,
    },
    cells=cells(RATE, 0.5, 0.5),
    measures={
        **{f"{m.upper()} {row}": f"ranking.{row}.fresh.full.{m}" for m in METRICS for row in ("sft", "ppo")},
        "BLEU-4 ppo": "text.ppo.bleu-4",
        **MEASURES,
    },
    reference="default",
    seeds=(0, 1),
)
