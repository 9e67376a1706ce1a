"""Where a gain comes from: PPO beside what it must beat at the same rollouts, on the embedded corpus.

  python -m crs_jax.sweep --sweep=configs/sweeps/controls.py --out=runs/controls --jobs=2

True utility is known to the simulator alone. `raft` is supervised learning of the best of eight replies by the same
reward, `shuffled` is PPO with every reply under another's score, `longer SFT` trains the supervised model half as long
again instead, `sampled acts` does not sum over acts, `rankwise` proposes lists. About two minutes a run on one core,
six for the first of a seed.
"""

from crs_jax.sweep import Sweep

UTILITY = {
    "utility sft": "simulator.utility_sft",
    "utility ppo": "simulator.utility_ppo",
    "difference": "simulator.difference",
    "share": "optimum.share",
    "KL": "rewards.ppo.kl",
    "BLEU-4 sft": "text.sft.bleu-4",
    "BLEU-4 ppo": "text.ppo.bleu-4",
}

SWEEP = Sweep(
    config="configs/quickstart.py",
    cells={
        "ppo": {},
        "sampled acts": {"ppo.all_acts": 0},
        "rankwise": {"algorithm": "rankwise"},
        "rloo": {"algorithm": "rloo"},
        "grpo": {"algorithm": "grpo", "ppo.all_acts": 0},
        "raft": {"algorithm": "raft", "ppo.all_acts": 0},
        "tilt": {"algorithm": "tilt"},
        "shuffled": {"ppo.shuffled_rewards": True},
        "longer SFT": {"sft.epochs": 7.5, "ppo.iterations": 0},
    },
    measures=UTILITY,
    reference="ppo",
)
