"""Advantages from a context's own replies, against plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import make_layout, random_replies

from crs_jax.rl.groups import ALGORITHMS, best_alone, group_advantages, standardised
from crs_jax.rl.scoring import parts

LAYOUT = make_layout(words=11, items=5, act_items=3)
C, G, R = 3, 4, 9


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_advantages_equal_a_loop(algorithm):
    rng = np.random.default_rng(0)
    tokens, mask = random_replies(rng, LAYOUT, C * G, R)
    reward = rng.normal(size=(C * G, R)).astype(np.float32)  # padding bears rewards too, which must not count
    found = np.asarray(group_advantages(jnp.asarray(reward), parts(tokens, mask, LAYOUT), G, algorithm))
    whole, words, said = [], [], []
    for b in range(C * G):
        row, real = tokens[b].tolist(), int(mask[b].sum())
        at = row.index(LAYOUT.say) if LAYOUT.say in row[:real] else real - 1
        said.append(at)
        whole.append(sum(float(x) for x in reward[b, :real]))
        words.append(sum(float(x) for x in reward[b, at + 1 : real]))

    def relative(values, b):
        own = values[b // G * G : (b // G + 1) * G]
        if algorithm == "raft":
            return G * (b % G == int(np.argmax(own)))
        if algorithm == "rloo":
            return values[b] - (sum(own) - values[b]) / (G - 1)
        mean = sum(own) / G
        return (values[b] - mean) / ((sum((x - mean) ** 2 for x in own) / G) ** 0.5 + 1e-6)

    for b in range(C * G):
        real = int(mask[b].sum())
        for r in range(R):
            expected = 0.0 if r >= real else relative(whole if r <= said[b] or algorithm == "raft" else words, b)
            assert found[b, r] == pytest.approx(expected, abs=1e-4), (b, r)


def test_best_alone_takes_the_first_of_equals():
    found = best_alone(jnp.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    np.testing.assert_array_equal(found, [[0, 4, 0, 0], [4, 0, 0, 0]])


def test_standardised_by_hand():
    found = standardised(jnp.array([[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]]))
    np.testing.assert_allclose(found, [[-1, 1, -1, 1], [0, 0, 0, 0]], atol=1e-5)
