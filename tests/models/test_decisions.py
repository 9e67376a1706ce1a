"""Kinds of tokens start at the corpus' rates: counts by hand, and the chances of a policy that has learnt nothing."""

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_policy import make_layout

from crs_jax.models.decisions import base_rates
from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.likelihood import log_normaliser
from crs_jax.models.policy import Policy

LAYOUT = make_layout(words=11, items=5, act_items=2)
ITEM, SAY, END = LAYOUT.item_offset, LAYOUT.say, LAYOUT.end
REPLIES = [
    [SAY, 1, 2, 3, END],  # nothing proposed: three words and the end
    [SAY, 4, END],
    [ITEM + 1, SAY, 5, ITEM + 1, 6, END],  # one item, named once among two words
    [ITEM + 2, ITEM, SAY, ITEM + 2, 1, ITEM, 3],  # two items, each named; cut before its end
]


def test_rates_are_counts():
    """With half a count of each kind: 2 of 4 do not propose, 1 of 2 stops after one item."""
    rates = base_rates(REPLIES, ITEM, SAY, END, 2)
    np.testing.assert_allclose(rates.say_M, np.log([2.5 / 2.5, 1.5 / 1.5]))
    np.testing.assert_allclose(rates.end_2, np.log([2.5 / 4.5, 1.5 / 4.5]))
    assert rates.own == pytest.approx(np.log(3.5 / 4.5))
    assert base_rates([[SAY, END]] * 99, ITEM, SAY, END, 2).say_M[0] == pytest.approx(np.log(99.5 / 0.5))


def test_a_policy_starts_at_the_rates():
    """Whatever its hidden states, and in both types: each kind's chance is the counts'."""
    rates = base_rates(REPLIES * 50, ITEM, SAY, END, 2)
    for dtype in ("float32", "bfloat16"):
        policy = Policy(
            GPT2Config(1, 16, 2, 32, dtype=dtype), LAYOUT, np.eye(5, 6, dtype=np.float32), rates=rates, rngs=nnx.Rngs(0)
        )
        hidden = jax.numpy.asarray(50 * np.random.default_rng(0).normal(size=(7, 16)), dtype)
        tables, none = policy.tables(), np.full((7, 2), -1)
        for used, share in ((none, 0.5), (np.array([[3, -1]] * 7), 0.5), (np.array([[3, 1]] * 7), 1.0)):
            logits = policy.act_logits(policy.acting(hidden, None), tables, used)
            say = np.exp(logits.extra[:, 0] - log_normaliser(logits))
            np.testing.assert_allclose(say, share, atol=1e-6)
        for own, end, pointers in ((none, 2 / 6, 0.0), (np.array([[3, -1]] * 7), 1 / 8, 3 / 8)):
            logits = policy.word_logits(hidden, tables, own)
            p = np.exp(np.asarray(logits.extra - log_normaliser(logits)[:, None]))
            np.testing.assert_allclose(p[:, -1], end, atol=2e-3)
            np.testing.assert_allclose(p[:, :-1].sum(-1), pointers, atol=2e-3)
