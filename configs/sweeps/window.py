"""How many utterances of context are worth having: k = 2, 4, 6, 8, 10, on the embedded corpus.

  python -m crs_jax.sweep --sweep=configs/sweeps/window.py --out=runs/window --jobs=2

Every cell trains its own models. Contexts have room for all that ten utterances hold (198 tokens at most at seed 0),
so that k alone cuts them. What items were named, genres asked for and people named is read from the whole talk whatever
k is; `--config.model.leave_out="('asked','named','near','people')"` leaves the model what stands in its window.
`window_redial.py` has the same cells on ReDial.
"""

from configs.sweeps.controls import UTILITY
from crs_jax.sweep import Plot, Sweep

CELLS = {f"k {k}": {"data.window": k} for k in (2, 4, 6, 8, 10)}
RANKING = {
    f"{metric.upper()} {row}": f"ranking.{row}.fresh.full.{metric}"
    for metric in ("hr@1", "hr@10", "ndcg@10")
    for row in ("sft", "ppo")
}
PLOTS = {
    "HR@10 over utterances of context": Plot("data.window", ("HR@10 sft", "HR@10 ppo")),
    "NDCG@10 over utterances of context": Plot("data.window", ("NDCG@10 sft", "NDCG@10 ppo")),
}

SWEEP = Sweep(
    config="configs/quickstart.py",
    fixed={"data.context_tokens": 216, "simulator.train_dialogues": 700, "ppo.iterations": 30},
    cells=CELLS,
    measures={**RANKING, "perplexity sft": "text.sft.perplexity", **UTILITY},
    reference="k 6",
    plots={**PLOTS, "True utility over utterances of context": Plot("data.window", ("utility sft", "utility ppo"))},
)
