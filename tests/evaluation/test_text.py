import math

import numpy as np
import pytest
from rouge_score import tokenizers

from crs_jax.evaluation import text
from crs_jax.runtime.errors import InputError

HYPOTHESES = ["have you seen The Matrix (1999)?", "i like that one too", "", "the cat sat on the mat"]
REFERENCES = ["have you seen Inception (2010)?", "i like it too", "hello there", "the cat sat on the mat"]


def test_words():
    assert text.words("Don't you  LIKE it? Yes.") == ["don't", "you", "like", "it", "?", "yes", "."]


def test_distinct_worked_by_hand():
    assert text.distinct(["a b a", "b c"], 1) == 3 / 5
    assert text.distinct(["a b a", "b c", "a b"], 2) == 3 / 4  # ab, ba, bc of ab, ba, bc, ab
    assert text.distinct(["", "a"], 2) == 0


def test_repetition_worked_by_hand():
    # abcd bcda cdab dabc abcd: one of five stood earlier in the same text; the same text twice repeats nothing more
    assert text.repetition(["a b c d a b c d"]) == 1 / 5
    assert text.repetition(["a b c d a b c d", "a b c d", "a b"]) == 1 / 6
    assert text.repetition(["a b c"]) == 0


def lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_equals_a_plain_longest_common_subsequence():
    expected = []
    for hypothesis, reference in zip(HYPOTHESES, REFERENCES, strict=True):
        h, r = ([w for w in text.words(t) if w.isalnum()] for t in (hypothesis, reference))
        common = lcs(h, r)
        expected.append(2 * common / (len(h) + len(r)) if common else 0.0)  # 2PR / (P + R)
    assert text.rouge_l(HYPOTHESES, REFERENCES) == pytest.approx(sum(expected) / 4)


def test_rouge_l_equals_tensorflow_text():
    """The same words, cut by rouge-score's own tokenizer, through the other library."""
    tf, tftext = (pytest.importorskip(name) for name in ("tensorflow", "tensorflow_text"))
    cut = tokenizers.DefaultTokenizer(use_stemmer=False).tokenize
    filled = [(h, r) for h, r in zip(HYPOTHESES, REFERENCES, strict=True) if h]
    hypotheses, references = ([cut(t) for t in column] for column in zip(*filled, strict=True))
    found = tftext.metrics.rouge_l(tf.ragged.constant(hypotheses), tf.ragged.constant(references)).f_measure.numpy()
    assert text.rouge_l(HYPOTHESES, REFERENCES) == pytest.approx(found.sum() / len(HYPOTHESES), rel=1e-6)
    assert len(set(found.round(3))) == 3


def test_bleu_worked_by_hand():
    """Six words against seven, without repeats: precisions 6/6, 5/5, 4/4, 3/3 and a brevity penalty exp(1 - 7/6)."""
    metrics = text.text_metrics(["one two three four five six"], ["one two three four five six seven"])
    assert metrics["bleu-4"] == pytest.approx(math.exp(1 - 7 / 6))
    # corpus level: counts are added before dividing; 6 + 4 of 6 + 5 words match, 5 + 2 of 5 + 4 pairs, and so on
    two = text.text_metrics(["one two three four five six", "a b x c d"], ["one two three four five six", "a b y c d"])
    precisions = [(6 + 4) / 11, (5 + 2) / 9, (4 + 0) / 7, (3 + 0) / 5]
    assert two["bleu-4"] == pytest.approx(math.prod(precisions) ** 0.25)
    assert "tok:13a" in two["bleu-signature"]
    assert "version:" in two["bleu-signature"]


def test_all_metrics():
    metrics = text.text_metrics(HYPOTHESES, REFERENCES)
    assert metrics["length"] == (6 + 5 + 0 + 6) / 4
    assert metrics["length-reference"] == (5 + 4 + 2 + 6) / 4
    assert metrics["empty"] == 0.25
    assert metrics["replies"] == 4
    same = text.text_metrics(REFERENCES, REFERENCES)
    assert same["bleu-4"] == pytest.approx(1)
    assert same["rouge-l"] == pytest.approx(1)
    assert same["distinct-2"] == same["distinct-2-reference"]
    assert 0 < metrics["bleu-4"] < 1


def test_empty_hypotheses_score_nothing():
    metrics = text.text_metrics(["", " "], ["some words here now", "and more"])
    numbers = [metrics[n] for n in ("bleu-4", "rouge-l", "distinct-1", "distinct-2", "length", "repetition", "empty")]
    assert numbers == [0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"])])
def test_sets_that_do_not_match(hypotheses, references):
    with pytest.raises(InputError, match="hypotheses"):
        text.text_metrics(hypotheses, references)


def test_bits_per_byte():
    # each of the four bytes of 'aé!' (é takes two) at probability 1/2: one bit a byte
    assert text.bits_per_byte(4 * math.log(2), ["aé".encode(), b"!"]) == pytest.approx(1)
    assert math.isnan(text.bits_per_byte(1.0, []))


def test_bleu_of_sums_is_corpus_bleu():
    counts = text.bleu_counts(HYPOTHESES, REFERENCES)
    assert text.bleu_of(counts.sum(0)) == pytest.approx(text.bleu_4(HYPOTHESES, REFERENCES), rel=1e-12)
    twice = text.bleu_of((counts * [[2], [0], [1], [1]]).sum(0))
    chosen = [0, 0, 2, 3]
    expected = text.bleu_4([HYPOTHESES[i] for i in chosen], [REFERENCES[i] for i in chosen])
    assert twice == pytest.approx(expected, rel=1e-12)
    assert text.bleu_of(np.zeros(10)) == text.bleu_4(["", ""], ["a", "b"]) == 0


def test_difference_of_bleu_resamples_dialogues():
    """The interval against a plain loop: whole dialogues drawn, both policies' replies to them scored anew."""
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(list("abcdefgh"), 9)) for _ in range(40)]
    after, before = ([r[: rng.integers(5, 18)] + " x" * (i % k) for i, r in enumerate(references)] for k in (2, 5))
    group = np.arange(40) // 4
    found = text.bleu_difference(after, before, references, group, 200)

    def difference(rows):
        scores = [text.bleu_4([said[i] for i in rows], [references[i] for i in rows]) for said in (after, before)]
        return scores[0] - scores[1]

    drawn = rng.integers(0, 10, (200, 10))
    gaps = [difference([i for d in dialogues for i in range(4 * d, 4 * d + 4)]) for dialogues in drawn]
    assert found["value"] == pytest.approx(difference(range(40)), abs=1e-12)
    assert found["high"] - found["low"] == pytest.approx(np.subtract(*np.percentile(gaps, [97.5, 2.5])), rel=0.25)
    assert found["low"] < found["value"] < found["high"]
    same = text.bleu_difference(after, after, references, group, 20)
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
