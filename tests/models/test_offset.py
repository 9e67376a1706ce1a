"""A pretrained model's logits share a large offset and its hidden states any norm: what is new beside it must not care.

The offset is made as real ones are: by a component that all word embeddings share and that the last layer norm's bias
answers. Positions are moved the other way, so that the trunk reads the same.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import ASKED, FACETS, GENRES, make_layout, random_evidence, random_prompts, split

from crs_jax.inputs.replies import reply_nll
from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.hf import Checkpoint, fill
from crs_jax.models.policy import Policy
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.forward import first_of
from crs_jax.training.act_head import head_logits

LAYOUT = make_layout(words=300, items=40, act_items=2)
SHAPE = GPT2Config(2, 64, 4, 48)
CONTEXTS, PROMPT, REPLY = 6, 20, 8
ITEM, WORD = LAYOUT.item_offset, 7


def checkpoint(offset=0.0, norm=8.0, std=0.14, shape=SHAPE):
    """Random GPT-2 weights whose hidden states have about that norm and whose words that standard deviation."""
    rng = np.random.default_rng(0)
    blank = nnx.eval_shape(lambda: Policy(shape, LAYOUT, np.zeros((40, 6)), rngs=nnx.Rngs(0)))
    trunk = jax.tree.map(
        lambda a: rng.normal(0, 0.05, a.shape).astype(np.float32), nnx.to_pure_dict(nnx.state(blank.trunk, nnx.Param))
    )
    for name in ("ln1_scale", "ln2_scale"):
        trunk["blocks"][name] += 1.0
    trunk["final_scale"] = np.full(shape.width, norm / shape.width**0.5, np.float32)
    trunk["final_bias"] = rng.normal(0, 0.5 * norm / shape.width**0.5, shape.width).astype(np.float32)
    shared = offset * trunk["final_bias"] / np.square(trunk["final_bias"]).sum()
    trunk["positions"] -= shared
    words = rng.normal(0, std, (LAYOUT.num_words, shape.width)).astype(np.float32) + shared
    return Checkpoint(shape, words.astype(np.float32), trunk, "random")


def policy(found, dtype="float32"):
    """Filled from the checkpoint; what the evidence says of items is random, as if fitted."""
    rng = np.random.default_rng(1)
    content_NE, attributes_NF = (rng.normal(size=(40, n)).astype(np.float32) for n in (6, FACETS))
    shape, spread = dataclasses.replace(found.config, dtype=dtype), float((found.words - found.words.mean(0)).std())
    model = Policy(shape, LAYOUT, content_NE, None, attributes_NF, GENRES, ASKED, rngs=nnx.Rngs(2), scale=spread)
    fill(model, found)
    model.items.bias[...] = jnp.asarray(np.pad(rng.normal(size=40), (0, 88)), jnp.float32)
    return model


def contexts():
    rng = np.random.default_rng(3)
    prompt, mask = random_prompts(rng, LAYOUT, rng.integers(6, PROMPT + 1, CONTEXTS), PROMPT)
    e = random_evidence(rng, LAYOUT, CONTEXTS)
    return Contexts(prompt, mask, e._replace(named_mean=np.zeros_like(e.text)))


REPLIES = {  # what `word_nll` speaks of: the chance of one kind of token, or a usual reply
    "end": [LAYOUT.say, LAYOUT.end],
    "own item": [ITEM + 3, LAYOUT.say, ITEM + 3],
    "word": [ITEM + 3, LAYOUT.say, WORD],
    "reply": [ITEM + 5, ITEM + 9, LAYOUT.say, 3, ITEM + 9, 8, 4, LAYOUT.end],
}


def figures(model):
    """Probabilities of first tokens, and losses of act and words, nats, of each reply by name."""
    graph, params, frozen = split(model)
    given = contexts()
    first = jax.jit(lambda p, f, c: first_of(graph, p, f, c, 1.0).joint)(params, frozen, given)
    losses = {}
    run = jax.jit(lambda *a: reply_nll(graph, *a))
    for name, reply in REPLIES.items():
        tokens = np.full((CONTEXTS, REPLY), LAYOUT.pad, np.int32)
        tokens[:, : len(reply)] = reply
        mask = np.broadcast_to(np.arange(REPLY) < len(reply), tokens.shape)
        found = run(params, frozen, given.prompt_CP, given.mask_CP, tokens, mask, given.features)
        losses |= {f"{name}, {part}": float(found[f"{part}_nll"]) / CONTEXTS for part in ("act", "word")}
    return np.exp(np.asarray(first, np.float64)), losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_offset_of_the_words_changes_nothing(dtype):
    first, losses = figures(policy(checkpoint(), dtype))
    for offset in (-35.0, -100.0):
        found, lost = figures(policy(checkpoint(offset), dtype))
        np.testing.assert_allclose(found, first, atol=1e-3)
        for name in losses:
            per_token = len(REPLIES[name.split(",")[0]])
            assert lost[name] == pytest.approx(losses[name], abs=1e-3 * per_token), (offset, name)


def test_the_offset_of_the_test_is_one():
    """The words' logits really are that low, in every context."""
    for offset in (-35.0, -100.0):
        found = checkpoint(offset)
        plain, moved = policy(checkpoint()), policy(found)
        given = contexts()
        positions = np.maximum(np.cumsum(given.mask_CP, 1) - 1, 0)
        mask = np.tril(np.ones((PROMPT, PROMPT), bool)) & given.mask_CP[:, None]
        words = np.minimum(given.prompt_CP, LAYOUT.num_words - 1)
        logits = []
        for model in (plain, moved):
            hidden = model.trunk(model.words[...][words], positions, mask)[given.mask_CP]
            logits.append(np.asarray(hidden @ model.words[...][: LAYOUT.num_words].T))
        assert abs((logits[1] - logits[0]).mean() - offset) < 0.25 * abs(offset)
        assert (logits[1] - logits[0]).std(1).max() < 1e-2


@pytest.mark.parametrize("width", [32, 64])
def test_items_start_as_the_evidence_has_them(width):
    """Before SFT the item distribution is the fitted head's, whatever the trunk's scale; the trunk's say can grow."""
    given, shape = contexts(), dataclasses.replace(SHAPE, width=width)
    graph = split(policy(checkpoint(shape=shape)))[0]

    @jax.jit
    def both(params, frozen):
        head = head_logits(nnx.merge(graph, params, frozen), given.features, None, 0.0)
        return first_of(graph, params, frozen, given, 1.0).joint[:, :40], head[:, :40]

    for norm, std in ((8.0, 0.02), (32.0, 0.14), (128.0, 0.14)):
        _, params, frozen = split(policy(checkpoint(-35.0, norm, std, shape)))
        ours, fitted = (np.asarray(a, np.float64) for a in both(params, frozen))
        left = fitted > -1e8  # the head leaves out what was named
        for c in range(CONTEXTS):
            one, other = np.exp(ours[c][left[c]]), np.exp(fitted[c][left[c]])
            np.testing.assert_allclose(np.log(one / one.sum()), np.log(other / other.sum()), atol=0.05)

    def target(params):
        return first_of(graph, params, frozen, given, 1.0).joint[:, 3].sum()

    gradient = jax.jit(jax.grad(target))(params)["query"]["hidden_kernel"]
    assert np.abs(gradient).max() > 0.01
