"""A tiny policy with random weights, legal random replies, and the grammar written as plain loops: an oracle.

Nothing here calls the masks, softmaxes or tree passes of crs_jax: only the trunk, which test_gpt2.py holds
against torch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.items import Frozen, centred
from crs_jax.models.policy import Layout, Policy

HUGE = 100.0  # of what must never be sampled: a logit of such a row would win at once


def make_layout(words=11, items=5, act_items=2, unused=()) -> Layout:
    return Layout(words, words + 6, items, act_items, *range(words, words + 6), unused=unused)


def make_policy(seed=0, layout=None, *, width=16, layers=2, heads=2, positions=64, noise=0.3, **config) -> Policy:
    """Random weights everywhere, and huge rows behind both tables."""
    layout = layout or make_layout()
    content_NE = np.random.default_rng([seed, 1]).normal(size=(layout.num_items, 6)).astype(np.float32)
    graph, params, frozen = empty_policy(GPT2Config(layers, width, heads, positions, **config), layout, content_NE)
    return nnx.merge(graph, random_params(params, layout, seed, noise), frozen)


def empty_policy(config, layout, content_NE):
    """Graph, parameters as shapes, and the items' content: a policy without the compilation of its first values."""
    graph, params, frozen = split(nnx.eval_shape(lambda: Policy(config, layout, content_NE, rngs=nnx.Rngs(0))))
    rows = frozen["items"]["content"].shape[0] - layout.num_items
    frozen["items"]["content"] = jnp.asarray(np.pad(centred(content_NE), ((0, rows), (0, 0))))
    return graph, params, frozen


def split(model):
    """Graph, parameters and frozen arrays."""
    graph, params, frozen = nnx.split(model, nnx.Param, Frozen)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def random_params(params, layout, seed, noise=0.3, huge_controls=False):
    """Normal noise; the tables' padding is huge, and on demand the control tokens that nobody samples."""
    rng = np.random.default_rng([seed, 2])
    params = jax.tree.map(lambda a: rng.normal(0, noise, a.shape).astype(a.dtype), params)
    params["words"][layout.item_offset :] *= HUGE / noise
    if huge_controls:
        params["words"][layout.pad : layout.say] *= HUGE / noise
    params["items"]["residual"][layout.num_items :] *= HUGE / noise
    params["items"]["bias"][layout.num_items :] = HUGE
    for scale in (
        params["trunk"]["final_scale"],
        params["trunk"]["blocks"]["ln1_scale"],
        params["trunk"]["blocks"]["ln2_scale"],
    ):
        scale += 1.0
    return jax.tree.map(jnp.asarray, params)


def random_prompts(rng, layout, lengths, width):
    """Left-padded prompts `[C, width]` of the given lengths that end in recommender, rec, and their mask."""
    tokens, mask = np.full((len(lengths), width), layout.pad, np.int32), np.zeros((len(lengths), width), bool)
    for c, length in enumerate(lengths):
        legal = [*range(layout.num_words), *range(layout.seeker, layout.item_offset + layout.num_items)]
        tokens[c, width - length :] = [*rng.choice(legal, length - 2), layout.recommender, layout.rec]
        mask[c, width - length :] = True
    return tokens, mask


def random_replies(rng, layout, count, width):
    """Legal replies `[count, width]` and their mask: acts of 0 to M items, words of any length, some without an end."""
    tokens, mask = np.full((count, width), layout.pad, np.int32), np.zeros((count, width), bool)
    for b in range(count):
        items = layout.item_offset + rng.permutation(layout.num_items)[: rng.integers(layout.act_items + 1)]
        legal = [w for w in range(layout.num_words) if w not in layout.unused] + list(items)
        reply = [*items, layout.say, *rng.choice(legal, rng.integers(width)), layout.end][:width]
        tokens[b, : len(reply)] = reply
        mask[b, : len(reply)] = True
    return tokens, mask


def tables(policy):
    """Words, item vectors and item biases as float64."""
    graph_arrays = [policy.words, policy.items.residual, policy.items.content, policy.items.projection]
    words, residual, content, projection = (np.asarray(a[...], np.float64) for a in graph_arrays)
    return words, residual + content @ projection, np.asarray(policy.items.bias[...], np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _run_trunk(graph, state, x_BTD):
    B, T, _ = x_BTD.shape
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return nnx.merge(graph, state)(x_BTD, jnp.arange(T)[None], mask)


def plain_hidden(policy, sequences):
    """Hidden states of each sequence in a row of its own, from position 0, padded on the right where nobody looks."""
    words, items, _ = tables(policy)
    table = np.concatenate([words[: policy.layout.item_offset], items])
    T = max(map(len, sequences))
    rows = np.stack([table[np.pad(np.asarray(s), (0, T - len(s)))] for s in sequences])
    graph, state = nnx.split(policy.trunk)
    hidden = np.asarray(_run_trunk(graph, state, jnp.asarray(rows, policy.words[...].dtype)), np.float64)
    return [h[: len(s)] for h, s in zip(hidden, sequences, strict=True)]


def random_vectors(rng, count, width=6):
    """Context vectors `[count, width]`, unit; the first is zero, as where there is nothing to embed."""
    vectors = rng.normal(size=(count, width))
    vectors[0] = 0.0
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)).astype(np.float32)


def plain_queries(policy, text_CE, named_CE):
    """Query of each context: the two vectors through their projections."""
    kernels = (np.asarray(k[...], np.float64) for k in (policy.query.text_kernel, policy.query.named_kernel))
    return sum(
        np.einsum("ce,ed->cd", np.asarray(vector, np.float64), kernel)
        for vector, kernel in zip((text_CE, named_CE), kernels, strict=True)
    )


def next_token(policy, hidden_D, reply, temperature=1.0, query_D=0.0):
    """{token: probability} after a legal beginning of a reply, by the grammar's words; the query counts in the act."""
    layout = policy.layout
    words, vectors, bias = tables(policy)
    hidden_D = np.asarray(hidden_D, np.float64)
    act = list(reply[: list(reply).index(layout.say)]) if layout.say in reply else list(reply)
    rows = [int(token) - layout.item_offset for token in act]
    logits = {}
    if layout.say in reply:
        for word in [*range(layout.num_words), layout.end]:
            if word not in layout.unused:
                logits[word] = words[word] @ hidden_D
        items = rows
    else:
        hidden_D = hidden_D + query_D
        logits[layout.say] = words[layout.say] @ hidden_D
        items = [n for n in range(layout.num_items) if n not in rows] if len(rows) < layout.act_items else []
    for n in items:
        logits[layout.item_offset + n] = vectors[n] @ hidden_D + bias[n]
    top = max(logits.values())
    mass = {token: np.exp((logit - top) / temperature) for token, logit in logits.items()}
    total = sum(mass.values())
    return {token: m / total for token, m in mass.items()}


def plain_likelihood(policy, prompts, replies, temperature=1.0, queries=None):
    """Log-probability and entropy of each token of each reply: lists of floats, from one row a reply."""
    queries = [0.0] * len(replies) if queries is None else queries
    hidden = plain_hidden(policy, [[*p, *r] for p, r in zip(prompts, replies, strict=True)])
    logp, entropy = [], []
    for prompt, reply, h, query in zip(prompts, replies, hidden, queries, strict=True):
        states = h[len(prompt) - 1 :]
        at = [next_token(policy, states[r], reply[:r], temperature, query) for r in range(len(reply))]
        logp.append([np.log(p[int(token)]) for p, token in zip(at, reply, strict=True)])
        entropy.append([-sum(x * np.log(x) for x in p.values() if x > 0) for p in at])
    return logp, entropy


def unpad(tokens, mask):
    """Rows as lists, without what the mask leaves out."""
    return [list(map(int, t[m])) for t, m in zip(np.asarray(tokens), np.asarray(mask), strict=True)]


def pad(rows, width):
    """Lists as one float array, 0 behind their ends."""
    return np.stack([np.pad(np.asarray(row, float), (0, width - len(row))) for row in rows])
