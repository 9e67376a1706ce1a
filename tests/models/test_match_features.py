"""How acts fit their contexts, against loops over items, and a hand-made case."""

import jax.numpy as jnp
import numpy as np
from tiny_policy import GENRES, make_layout, make_policy, plain_fits, random_evidence

from crs_jax.features.context import ContextFeatures
from crs_jax.models.match_features import MATCH_FEATURES, match_features

LAYOUT = make_layout(words=11, items=9, act_items=3)


def test_fits_equal_a_loop():
    policy = make_policy(0, LAYOUT)
    evidence = random_evidence(np.random.default_rng(0), LAYOUT, 6)
    acts = [[2], [], [0, 8, 3], [5, 1], [7], [4, 6]]
    act_BM = np.full((6, 3), -1, np.int32)
    for b, rows in enumerate(acts):
        act_BM[b, 3 - len(rows) :] = rows  # where they stand does not matter
    got = match_features(evidence, jnp.asarray(act_BM), policy.items.content[...], GENRES)
    assert got.dtype == jnp.float32
    for b, rows in enumerate(acts):
        one = [part[b] for part in evidence[:8]]
        np.testing.assert_allclose(got[b], plain_fits(policy, one, rows), atol=2e-6, err_msg=str(rows))
    assert not np.asarray(got[1]).any()


def test_fits_by_hand():
    """Two items, an embedding of two numbers, one genre, two years. Of item 0 all is asked; item 1 was named."""
    content = jnp.array([[1.0, 0, 1, 1, 0, 0.5], [0, 1.0, 0, 1, 0, -0.5], [0.0] * 6])
    evidence = ContextFeatures(
        jnp.array([[0.6, 0.8]]), jnp.array([[0.7, 9.0]]), jnp.array([[1, -1]]), jnp.array([[0, 0]]),
        jnp.array([[0, -1]]), jnp.array([[0.25, 0.0]]), jnp.array([[2, 0]]), jnp.array([[5.0, 2.0]]),
    )  # fmt: skip
    got = dict(
        zip(
            MATCH_FEATURES,
            np.asarray(match_features(evidence, jnp.array([[0, -1]]), content, 1))[0].tolist(),
            strict=True,
        )
    )
    wanted = {
        "text": 0.6, "named": 0.0, "genres asked": 0.7, "genres named": 0.0, "years named": 1.0, "popularity": 0.5,
        "near": 0.25, "people": 2.0, "proposes": 1.0,
    }  # fmt: skip
    assert {name: round(value, 5) for name, value in got.items()} == wanted
