"""Ten seeds of the whole quickstart: how many runs collapse, and how far the gain in true utility varies.

  python -m crs_jax.sweep --sweep=configs/sweeps/seeds.py --out=runs/seeds --jobs=2

A run counts as collapsed where `health` in its metrics.json warns of KL, entropy, length or missing ends
(`crs_jax/training/health.py` states the bounds); `warnings` is how many kinds of warning it has.
"""

from configs.sweeps.controls import UTILITY
from crs_jax.sweep import Sweep

SWEEP = Sweep(
    config="configs/quickstart.py",
    cells={"default": {}},
    measures=UTILITY
    | {
        "low": "simulator.low",
        "entropy of acts": "rewards.ppo.entropy-act",
        "entropy of words": "rewards.ppo.entropy-word",
        "length sft": "rewards.sft.length",
        "length ppo": "rewards.ppo.length",
        "ended": "rewards.ppo.ended",
        "warnings": "health",
    },
    reference="default",
    seeds=tuple(range(10)),
)
