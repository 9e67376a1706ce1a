"""Proxy against truth as the KL coefficient falls, for each part of the reward: where a reward is gamed.

  python -m crs_jax.sweep --sweep=configs/sweeps/hacking.py --out=runs/hacking --jobs=2

`reward` is what the reward model says, `utility ppo` what the simulator knows.
"""

from configs.sweeps.controls import UTILITY
from configs.sweeps.reward_ablation import NAMES, weights
from crs_jax.sweep import Sweep

COEFFICIENTS = (1.0, 0.3, 0.1, 0.03)

SWEEP = Sweep(
    config="configs/quickstart.py",
    cells={
        f"{label}, KL {kl:g}": {"ppo.act_kl": kl, "ppo.word_kl": kl, **weights(kept)}
        for label, kept in (("all", tuple(NAMES)), *((NAMES[name], (name,)) for name in NAMES))
        for kl in COEFFICIENTS
    },
    measures={"reward sft": "rewards.sft.reward", "reward ppo": "rewards.ppo.reward", **UTILITY},
    reference="all, KL 0.3",
    seeds=(0,),
)
