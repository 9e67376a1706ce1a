"""Proxy against truth as the KL coefficient falls, for each part of the reward: where a reward is gamed.

  python -m crs_jax.sweep --sweep=configs/sweeps/hacking.py --out=runs/hacking --jobs=2

`reward ppo` is what the reward model says (the proxy), `utility ppo` what the simulator knows. The plots show both over
KL, a line for each part of the reward.
"""

from configs.sweeps.controls import UTILITY
from configs.sweeps.reward_ablation import NAMES, weights
from crs_jax.sweep import Plot, Sweep

COEFFICIENTS = (1.0, 0.3, 0.1, 0.03)
PARTS = {"all": tuple(NAMES), **{NAMES[name]: (name,) for name in NAMES}}
LINES = {label: tuple(f"{label}, KL {kl:g}" for kl in COEFFICIENTS) for label in PARTS}

SWEEP = Sweep(
    config="configs/quickstart.py",
    cells={
        f"{label}, KL {kl:g}": {"ppo.act_kl": kl, "ppo.word_kl": kl, **weights(kept)}
        for label, kept in PARTS.items()
        for kl in COEFFICIENTS
    },
    measures={"reward sft": "rewards.sft.reward", "reward ppo": "rewards.ppo.reward", **UTILITY},
    reference="all, KL 0.3",
    seeds=(0,),
    plots={
        "True utility over KL": Plot("KL", ("utility ppo",), LINES),
        "Proxy reward over KL": Plot("KL", ("reward ppo",), LINES),
    },
)
