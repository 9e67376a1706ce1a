"""Proxy against truth as the KL coefficient falls: for each part of the reward, and with an ensemble of reward models.

  python -m crs_jax.sweep --sweep=configs/sweeps/hacking.py --out=runs/hacking --jobs=2

`reward ppo` is what the reward model says (the proxy), less the members' spread where that is taken off; `spread` is
how far the members of an ensemble disagree on replies, in units of that reward (nan without one); `utility ppo` is what
the simulator knows. The plots show both over KL, a line for each part of the reward and one for each ensemble.
"""

from configs.sweeps.controls import UTILITY
from configs.sweeps.reward_ablation import NAMES, weights
from crs_jax.sweep import Plot, Sweep

COEFFICIENTS = (1.0, 0.3, 0.1, 0.03)
PARTS = {"all": tuple(NAMES), **{NAMES[name]: (name,) for name in NAMES}}
MEMBERS = 4
SPREADS = (0.0, 1.0)
ENSEMBLES = {f"{MEMBERS} models, spread {spread:g}": spread for spread in SPREADS}


def at(kl: float) -> dict[str, float]:
    """Both KL coefficients."""
    return {"ppo.act_kl": kl, "ppo.word_kl": kl}


def lines(*labels: str) -> dict[str, tuple[str, ...]]:
    """A line of the plots for each."""
    return {label: tuple(f"{label}, KL {kl:g}" for kl in COEFFICIENTS) for label in labels}


SWEEP = Sweep(
    config="configs/quickstart.py",
    cells={
        f"{label}, KL {kl:g}": {**at(kl), **weights(kept)}
        for label, kept in PARTS.items()
        for kl in COEFFICIENTS
    }
    | {
        f"{label}, KL {kl:g}": {**at(kl), "reward.ensemble": MEMBERS, "reward.spread": spread}
        for label, spread in ENSEMBLES.items()
        for kl in COEFFICIENTS
    },
    measures={
        "reward sft": "rewards.sft.reward",
        "reward ppo": "rewards.ppo.reward",
        "spread sft": "rewards.sft.spread",
        "spread ppo": "rewards.ppo.spread",
        **UTILITY,
    },
    reference="all, KL 0.3",
    seeds=(0,),
    plots={
        f"{what} over KL{of}": Plot("KL", (measure,), cells)
        for what, measure in (("True utility", "utility ppo"), ("Proxy reward", "reward ppo"))
        for of, cells in (("", lines(*PARTS)), (": one reward model or four", lines("all", *ENSEMBLES)))
    },
)  # fmt: skip
