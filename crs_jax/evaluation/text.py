"""Text metrics of generated replies against the recommender's own.

Message set: every reply given, one hypothesis and one reference each, both as people read them: titles as words, no
control tokens. The caller says how they were decoded. All scores are on a scale of 0 to 1 except lengths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.runtime.errors import InputError

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks, what n-grams are counted over."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The n-grams of a list of words, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct-n (Li et al. 2016): different n-grams over all n-grams of the whole set; 0 without any.

    It falls as the set grows, so compare sets of one size only.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        grams = ngrams(words(text), n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def repetition(texts: Iterable[str], n: int = 4) -> float:
    """Share of n-grams that already stood earlier in the same text, over the whole set; 0 without any."""
    repeated = total = 0
    for text in texts:
        grams = ngrams(words(text), n)
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return repeated / total if total else 0.0


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F1 (Lin 2004) of `rouge_score`, without stemming; an empty hypothesis scores 0."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"])
    scores = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hypotheses, references, strict=True)]
    return sum(scores) / len(scores)


def bleu_4(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu over 100, one reference each; empty hypotheses count through the brevity penalty."""
    return _bleu().corpus_score(list(hypotheses), [list(references)]).score / 100.0


def bleu_counts(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What corpus BLEU adds up, of each pair, [B, 10]: n-grams that match and all of them (n = 1 to 4), two lengths."""
    bleu = _bleu()
    scores = [bleu.corpus_score([h], [[r]]) for h, r in zip(hypotheses, references, strict=True)]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], np.float64)


def bleu_of(counts: np.ndarray) -> float:
    """Corpus BLEU over 100 of summed `bleu_counts`, [10]; a resampled sum may count a reply several times."""
    whole = [round(count) for count in counts]
    return type(_bleu()).compute_bleu(whole[:4], whole[4:8], *whole[8:], smooth_method="exp").score / 100.0


def bleu_difference(
    after: Sequence[str], before: Sequence[str], references: Sequence[str], group_B: np.ndarray, bootstrap: int
) -> dict[str, float]:
    """Corpus BLEU of `after` minus that of `before`, with a 95 % interval: both from the same dialogues, resampled."""
    weights, counts = resample(group_B, bootstrap, 0), [bleu_counts(said, references) for said in (after, before)]
    after_R, before_R = (np.array([bleu_of(row) for row in weights.sums(counts_BM)]) for counts_BM in counts)
    return interval(bleu_of(counts[0].sum(0)) - bleu_of(counts[1].sum(0)), after_R - before_R)


def _bleu() -> Any:
    import sacrebleu.metrics

    return sacrebleu.metrics.BLEU()


def text_metrics(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """All text metrics of a set of replies.

    Returns:
      bleu-4: corpus BLEU of sacrebleu over 100, with `bleu-signature`; empty hypotheses count through the brevity
        penalty.
      distinct-1, distinct-2, repetition (of 4-grams): of the hypotheses; `distinct-2-reference` for comparison.
      rouge-l: mean F1.
      length, length-reference: mean words a reply, split at spaces.
      empty: share of hypotheses without a word.
      replies: how many.

    Raises:
      InputError: no replies, or as many hypotheses as references are not given.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise InputError(
            f"text metrics: found {len(hypotheses)} hypotheses and {len(references)} references, "
            "expected as many of both, and at least one"
        )
    bleu = _bleu()
    score = bleu.corpus_score(list(hypotheses), [list(references)]).score
    return {
        "bleu-4": score / 100.0,
        "bleu-signature": str(bleu.get_signature()),
        "distinct-1": distinct(hypotheses, 1),
        "distinct-2": distinct(hypotheses, 2),
        "distinct-2-reference": distinct(references, 2),
        "rouge-l": rouge_l(hypotheses, references),
        "repetition": repetition(hypotheses),
        "length": mean_length(hypotheses),
        "length-reference": mean_length(references),
        "empty": sum(not text.split() for text in hypotheses) / len(hypotheses),
        "replies": len(hypotheses),
    }


def mean_length(texts: Sequence[str]) -> float:
    """Mean number of words, split at spaces."""
    return sum(len(text.split()) for text in texts) / len(texts)


def bits_per_byte(nll: float, texts: Iterable[bytes]) -> float:
    """Bits of information per byte of text, comparable between tokenizers; NaN without text.

    Args:
      nll: summed negative log-likelihood, in nats, of the tokens that spell these bytes and of no others.
      texts: UTF-8.
    """
    size = sum(map(len, texts))
    return nll / (math.log(2) * size) if size else float("nan")
