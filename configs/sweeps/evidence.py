"""What each kind of evidence, and each way of fitting it, is worth to the act head: ReDial, on held-out dialogues.

  python -m crs_jax.sweep --sweep=configs/sweeps/evidence.py --out=runs/evidence --config.data.dir=FOLDER

The head alone (`--config.sft.epochs=0`), fresh targets, full catalogue, so a run takes about a minute on one core. As
many as 900 dialogues are held out of train, since 300 tell little apart; the test split is not looked at.
"""

from crs_jax.sweep import Sweep

SWEEP = Sweep(
    config="configs/redial_ppo.py:scratch",
    fixed={"stages": "sft", "sft.epochs": 0.0, "data.validation_dialogues": 900},
    cells={
        "all": {},
        "without text": {"model.leave_out": "('text',)"},
        "without genres and eras asked for": {"model.leave_out": "('asked',)"},
        "without items named": {"model.leave_out": "('named',)"},
        "without what is named together": {"model.leave_out": "('near',)"},
        "without people named": {"model.leave_out": "('people',)"},
        "only what recommenders named": {"head.seeker": 0.0, "head.later": 0.0},
        "without what is named later": {"head.later": 0.0},
        "weak decay (0.1)": {"head.weight_decay": 0.1},
        "no dropout": {"head.dropout": 0.0},
        "no running average": {"head.average": 0.0},
        "20 epochs": {"head.epochs": 20.0},
    },
    measures={
        "loss": "head:validation/loss",
        "HR@1": "head:validation/hr@1",
        "HR@10": "head:validation/hr@10",
        "HR@50": "head:validation/hr@50",
    },
    reference="all",
    seeds=(0, 1),
)
