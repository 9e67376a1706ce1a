"""How many utterances of context are worth having, on ReDial: the cells of `window.py`, small models, a part of train.

  python -m crs_jax.sweep --sweep=configs/sweeps/window_redial.py --out=runs/window_redial --config.data.dir=FOLDER

What is said of the evidence in `window.py` holds here too; a talk has 17 utterances, the simulator's ten. Contexts hold
320 tokens, which cuts fewer than one in a hundred of ten utterances. 1,000 training dialogues, all of test.
"""

from configs.sweeps.window import CELLS, PLOTS, RANKING
from crs_jax.sweep import Sweep

SWEEP = Sweep(
    config="configs/redial_ppo.py:tiny",
    fixed={
        "data.context_tokens": 320,
        "data.max_train_dialogues": 1000,
        "data.max_eval_dialogues": 0,
        "ppo.iterations": 15,
        "ppo.contexts": 16,
        "evaluation.generate": 200,
    },
    cells=CELLS,
    measures={**RANKING, "perplexity sft": "text.sft.perplexity", "KL": "rewards.ppo.kl"},
    reference="k 8",
    seeds=(0, 1),
    plots=PLOTS,
)
