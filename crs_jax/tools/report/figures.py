"""One number with what is known of its spread, and how numbers and names are printed."""

from __future__ import annotations

import dataclasses
import math
import re

NAMES = {
    "init": "Not trained",
    "sft": "SFT",
    "ppo": "PPO",
    "human": "Human",
    "popularity": "Popularity",
    "copy": "Copy from context",
    "similarity": "Text similarity",
    "cooccurrence": "Co-occurrence",
    "mix": "Tuned mix",
    "kl": "KL",
    "ppo-sft": "PPO − SFT",
    "kl/act": "KL, acts",
    "kl/word": "KL, words",
    "kl-act": "KL, acts",
    "kl-word": "KL, words",
    "entropy/act": "Entropy, acts",
    "entropy/word": "Entropy, words",
    "entropy-act": "Entropy, acts",
    "entropy-word": "Entropy, words",
    "rdl-round": "RDL by round",
    "bleu-signature": "BLEU signature",
    "ece": "ECE",
    "ece-chance": "ECE by chance",
    "ceiling": "Noise ceiling",
    "sr": "SR",
    "rdl": "RDL",
    "n": "n",
    "p": "p",
}
PROTOCOLS = {"full": "Full catalogue", "sampled": "Sampled"}
TARGETS = {"fresh": "Fresh targets", "all": "All targets"}
_ACRONYMS = {"hr", "ndcg", "mrr", "bleu", "rouge", "kl", "bleu-4", "rouge-l", "sft", "ppo", "lr", "auc"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number; with a 95 % interval and the p-value of a difference where there are such."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    def __neg__(self) -> Figure:
        low, high = (None if x is None else -x for x in (self.high, self.low))
        return Figure(-self.value, low, high, self.p)


def name_of(key: str) -> str:
    """The name people know a measure or row by: `hr@5` is HR@5, `reply_length` is Reply length."""
    if key in NAMES:
        return NAMES[key]
    head, at, k = key.partition("@")
    if head in _ACRONYMS:
        return head.upper() + at + k
    text = re.sub("-(?=[a-z]{2})", " ", key).replace("_", " ").replace("/", ", ")
    text = re.sub(r"[a-z]+(?=[,@ ]|$)", lambda word: word[0].upper() if word[0] in _ACRONYMS else word[0], text)
    return text[:1].upper() + text[1:]


def number(value: float | None, signed: bool = False) -> str:
    """A number in a table, three or four digits that matter; whole numbers get thousands separators."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if isinstance(value, int) or (value == int(value) and size >= 1000):
        text = f"{int(size):,}"
    elif size >= 1000:
        text = f"{size:,.0f}"
    elif size >= 100:
        text = f"{size:.1f}"
    elif size >= 10:
        text = f"{size:.2f}"
    elif size >= 0.0005 or size == 0:
        text = f"{size:.3f}"
    elif size >= 0.00005:
        text = f"{size:.4f}"
    else:
        text = f"{size:.1e}".replace("e-0", "e−").replace("e-", "e−")
    if value < 0:
        return "−" + text
    return "+" + text if signed and value > 0 else text


def interval(figure: Figure, signed: bool = False) -> str:
    """`0.134–0.162`, or `−0.012 to +0.034` where a sign may stand; nothing without an interval."""
    if not figure.has_interval:
        return ""
    between = "–" if not signed and figure.low is not None and figure.low >= 0 else " to "
    return f"{number(figure.low, signed)}{between}{number(figure.high, signed)}"


def p_value(p: float | None) -> str:
    """A p-value to three decimals."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
