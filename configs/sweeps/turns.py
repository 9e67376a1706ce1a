"""What looking ahead is worth: episodes of one turn and of two, on the embedded corpus.

  python -m crs_jax.sweep --sweep=configs/sweeps/turns.py --out=runs/turns --jobs=2

After the first reply the simulator's own seeker answers, or the language model of seekers. Evaluation is that of single
replies to logged contexts in every cell.
"""

from configs.sweeps.controls import UTILITY
from crs_jax.sweep import Sweep

VALUE = {"ppo.group_baseline": False}  # a value function, which looks ahead

SWEEP = Sweep(
    config="configs/quickstart.py",
    cells={
        "one turn": VALUE,
        "two, simulator": {**VALUE, "ppo.turns": 2, "ppo.seeker": "simulator"},
        "two, model": {**VALUE, "ppo.turns": 2, "ppo.seeker": "model"},
    },
    measures=UTILITY,
    reference="one turn",
)
