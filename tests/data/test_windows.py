"""Oracle: each prompt built by itself with plain lists."""

import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from configs.common import get_config
from crs_jax.data import windows
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return DialogueTokenizer.train(["a b c"], 256, 3)


def corpus(dialogues, most_turns, most_tokens, seed):
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(0, 250, rng.integers(0, most_tokens)).tolist() for _ in range(rng.integers(1, most_turns))]
        for _ in range(dialogues)
    ]


def everywhere(encoded):
    return [(d, t) for d, dialogue in enumerate(encoded) for t in range(len(dialogue) + 1)]


def plain(encoded, where, window, budget, t):
    tokens, mask = [], []
    for dialogue, turn in where:
        context = [token for said in encoded[dialogue][max(0, turn - window) : turn] for token in said]
        room = budget - 2
        context = context[len(context) - room :] if len(context) > room else context
        prompt = [*context, t.recommender, t.rec]
        missing = budget - len(prompt)
        tokens.append([t.pad] * missing + prompt)
        mask.append([False] * missing + [True] * len(prompt))
    return np.array(tokens), np.array(mask)


def test_by_hand(tokenizer):
    t = tokenizer
    encoded = [[[1], [2, 3]], [[4, 5], [], [6, 7, 8]]]
    got = windows.context_windows(encoded, [(1, 3), (0, 0), (1, 1), (0, 2)], 2, 5, t)
    r = [t.recommender, t.rec]
    assert got.tokens_BP.tolist() == [
        [6, 7, 8, *r], [t.pad, t.pad, t.pad, *r], [t.pad, 4, 5, *r], [1, 2, 3, *r]
    ]  # fmt: skip
    assert (~got.mask_BP).sum(axis=1).tolist() == [0, 3, 1, 0]
    assert (got.tokens_BP.dtype, got.mask_BP.dtype, len(got)) == (np.int32, bool, 4)


@pytest.mark.parametrize(("window", "budget"), [(1, 40), (3, 20), (8, 160), (100, 500), (2, 2), (2, 3)])
def test_equals_plain_lists(tokenizer, window, budget):
    encoded = corpus(40, 15, 25, seed=window)
    where = everywhere(encoded)
    np.random.default_rng(0).shuffle(where)
    got = windows.context_windows(encoded, where, window, budget, tokenizer)
    tokens, mask = plain(encoded, where, window, budget, tokenizer)
    np.testing.assert_array_equal(got.tokens_BP, tokens)
    np.testing.assert_array_equal(got.mask_BP, mask)


@hypothesis.given(
    encoded=st.lists(st.lists(st.lists(st.integers(0, 249), max_size=9), max_size=7), min_size=1, max_size=5),
    window=st.integers(1, 9),
    budget=st.integers(2, 30),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_any_lengths_equal_plain_lists(tokenizer, encoded, window, budget):
    """Of dialogues, turns (empty ones too), window and budget; a prompt always ends in its two tokens."""
    where = everywhere(encoded)
    got = windows.context_windows(encoded, where, window, budget, tokenizer)
    tokens, mask = plain(encoded, where, window, budget, tokenizer)
    np.testing.assert_array_equal(got.tokens_BP, tokens)
    np.testing.assert_array_equal(got.mask_BP, mask)
    assert (got.tokens_BP[:, -2:] == [tokenizer.recommender, tokenizer.rec]).all()


def test_tensorflow_text_gives_the_same_arrays(tokenizer):
    """One process for all that is odd: more dialogues than a step of the pipeline, empty turns, repeats, no order."""
    encoded = corpus(300, 12, 12, seed=5)
    where = everywhere(encoded)
    np.random.default_rng(1).shuffle(where)
    where = [*where[: len(where) // 2], *where[:7]]
    config = get_config()
    config.data.window, config.data.context_tokens, config.data.pipeline = 3, 17, "tftext"
    got = windows.make_windows(config, encoded, where, tokenizer)
    tokens, mask = plain(encoded, where, 3, 17, tokenizer)
    assert (~mask).any(axis=1).mean() > 0.3  # both shorter than the budget
    assert mask.all(axis=1).mean() > 0.3  # and longer
    config.data.pipeline = "numpy"
    same = windows.make_windows(config, encoded, where, tokenizer)
    for want_tokens, want_mask in ((tokens, mask), (same.tokens_BP, same.mask_BP)):
        np.testing.assert_array_equal(got.tokens_BP, want_tokens)
        np.testing.assert_array_equal(got.mask_BP, want_mask)
    assert (got.tokens_BP.dtype, got.mask_BP.dtype) == (same.tokens_BP.dtype, same.mask_BP.dtype)


def test_nowhere(tokenizer):
    got = windows.context_windows([[[1]]], [], 2, 5, tokenizer)
    assert got.tokens_BP.shape == got.mask_BP.shape == (0, 5)


@pytest.mark.parametrize("place", [(2, 0), (-1, 0), (0, -1), (0, 3), (1, 2)])
def test_a_place_outside_the_corpus(tokenizer, place):
    with pytest.raises(ValueError, match=r"no such \(dialogue, turn\)"):
        windows.context_windows([[[1], [2]], [[3]]], [(0, 2), (1, 1), place], 2, 5, tokenizer)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("window", 0, "--config.data.window=0: take at least 1 utterance"),
        ("context_tokens", 1, "--config.data.context_tokens=1: the reply's opening alone takes 2"),
        ("pipeline", "torch", "--config.data.pipeline=torch: take numpy or tftext"),
    ],
)
def test_settings_that_cannot_be(tokenizer, field, value, message):
    config = get_config()
    config.data[field] = value
    with pytest.raises(InputError) as raised:
        windows.make_windows(config, [[[1]]], [(0, 1)], tokenizer)
    assert str(raised.value) == message


def test_thirty_thousand_prompts_take_moments(tokenizer):
    encoded = corpus(4000, 16, 24, seed=0)
    where = everywhere(encoded)[:30_000]
    start = time.process_time()
    got = windows.context_windows(encoded, where, 8, 160, tokenizer)
    assert time.process_time() - start < 4  # 0.2 s on one core of 2024
    assert got.tokens_BP.shape == (30_000, 160)
