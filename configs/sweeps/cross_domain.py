"""From films to books: policies trained on OpenDialKG's movie dialogues rank and talk of books they have never seen.

  python -m crs_jax.sweep --sweep=configs/sweeps/cross_domain.py --out=runs/cross_domain --config.data.dir=FOLDER

`books` is trained on books, the reference; `books from movies` takes the policies of `movies` as they are
(`crs_jax/training/transfer.py`) and is evaluated on the same test dialogues, so these two are paired. `movies` is
measured on movies: its difference to `books` is one of corpora. Rows popularity, similarity and mix are fitted on the
training dialogues of the corpus that is tested. Replies are compared by bits per byte, since the two have other BPEs
(of their words, without titles). Of the books only titles are known, so that what can carry over is what
the sentence encoder makes of titles, how the talk goes, and when to recommend. Small models, 1,000 training dialogues.
"""

from crs_jax.sweep import Sweep

ROWS = ("sft", "ppo", "popularity", "similarity", "mix")

SWEEP = Sweep(
    config="configs/opendialkg_ppo.py:tiny",
    fixed={
        "data.max_train_dialogues": 1000,
        "data.max_eval_dialogues": 0,
        "ppo.iterations": 15,
        "ppo.contexts": 16,
        "evaluation.generate": 200,
    },
    cells={
        "movies": {},
        "books": {"data.domain": "books"},
        "books from movies": {
            "data.domain": "books",
            "stages": "evaluate",
            "model.transfer": "{out}/movies-{seed}",
        },
    },
    measures={
        **{f"HR@10 {row}": f"ranking.{row}.fresh.full.hr@10" for row in ROWS},
        **{f"NDCG@10 {row}": f"ranking.{row}.fresh.full.ndcg@10" for row in ROWS[:2]},
        "HR@10, 1 + 99, sft": "ranking.sft.fresh.sampled.hr@10",
        "HR@10, 1 + 99, ppo": "ranking.ppo.fresh.sampled.hr@10",
        "ppo - sft, HR@10": "paired.ppo-sft.fresh.full.hr@10",
        "bits per byte sft": "text.sft.bits-per-byte",
        "BLEU-4 sft": "text.sft.bleu-4",
        "BLEU-4 ppo": "text.ppo.bleu-4",
    },
    reference="books",
)
