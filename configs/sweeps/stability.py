"""What keeps PPO stable: one thing switched on or off at a time, against the quickstart as it is.

  python -m crs_jax.sweep --sweep=configs/sweeps/stability.py --out=runs/stability --jobs=2

`stability_redial.py` has the same cells on ReDial.

The supervised and the reward model are made once a seed. KL targets are below what the default reaches, so that the
controllers have work to do. `no clipping` keeps ratios between .01 and 1.99, all that the setting allows. `clip
fraction` and `explained variance` are those of the last iteration; `warnings` counts the kinds of warning that
`crs_jax/training/health.py` has for a run. About three minutes a run on one core, eight for the first of a seed.
"""

from typing import Any

from configs.sweeps.controls import UTILITY
from crs_jax.sweep import Sweep


def cells(rate: float, act_kl: float, word_kl: float) -> dict[str, dict[str, Any]]:
    """The cells for PPO's learning rate and KL targets, nats a reply."""
    adaptive: dict[str, Any] = {"ppo.act_kl_target": act_kl, "ppo.word_kl_target": word_kl, "ppo.kl_horizon": 500}
    triple: dict[str, Any] = {"ppo.learning_rate": 3 * rate}
    value: dict[str, Any] = {"ppo.group_baseline": False}
    return {
        "default": {},
        "adaptive KL": adaptive,
        "no trust region": {"ppo.step_kl": 1e9},
        "no rate warm-up": {"ppo.warmup": 0.0},
        "constant rate": {"ppo.decay_to": 1.0},
        "entropy bonus": {"ppo.act_entropy": 0.01, "ppo.word_entropy": 0.01},
        "value function": value,
        "value function, warm-up": value | {"ppo.value_warmup": 5},
        "sampled acts": {"ppo.all_acts": 0},
        "no clipping": {"ppo.clip": 0.99, "ppo.value_clip": 100.0},
        "value function, lambda 1": value | {"ppo.gae_lambda": 1.0},
        "value function, lambda .8": value | {"ppo.gae_lambda": 0.8},
        "triple rate": triple,
        "triple rate, adaptive KL": triple | adaptive,
        "triple rate, no trust region": {**triple, "ppo.step_kl": 1e9},
        "triple rate, no clipping": {**triple, "ppo.clip": 0.99, "ppo.value_clip": 100.0},
    }


MEASURES = {
    "reward": "rewards.ppo.reward",
    "KL acts": "rewards.ppo.kl-act",
    "KL words": "rewards.ppo.kl-word",
    "entropy acts": "rewards.ppo.entropy-act",
    "entropy words": "rewards.ppo.entropy-word",
    "length": "rewards.ppo.length",
    "clip fraction": "ppo:clip_fraction",
    "explained variance": "ppo:explained_variance",
    "warnings": "health",
}

SWEEP = Sweep(
    config="configs/quickstart.py",
    cells=cells(1e-4, 0.6, 0.1),
    measures={"utility sft": UTILITY["utility sft"], "utility ppo": UTILITY["utility ppo"], **MEASURES},
    reference="default",
)
