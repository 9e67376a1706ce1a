"""What each signal is worth: PPO on each alone, each pair and all three, on the embedded corpus.

  python -m crs_jax.sweep --sweep=configs/sweeps/reward_ablation.py --out=runs/rewards --jobs=2

The reward model is fitted once a seed; the weights are read by PPO alone. `no copies` fits it without proposals that
nobody made.
"""

from configs.sweeps.controls import UTILITY
from crs_jax.sweep import Sweep

NAMES = {"alpha": "engagement", "beta": "relevance", "gamma": "sentiment"}
KEPT = (("alpha",), ("beta",), ("gamma",), ("alpha", "beta"), ("alpha", "gamma"), ("beta", "gamma"))


def weights(kept: tuple[str, ...]) -> dict[str, float]:
    """Weight 0 for what is not kept."""
    return {f"reward.{name}": 0.0 for name in NAMES if name not in kept}


SWEEP = Sweep(
    config="configs/quickstart.py",
    cells={
        "all": {},
        **{" and ".join(NAMES[name] for name in kept): weights(kept) for kept in KEPT},
        "no copies": {"reward.counterfactual": 0.0},
    },
    measures=UTILITY,
    reference="all",
    seeds=(0, 1),
)
