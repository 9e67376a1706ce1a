"""A tiny policy with random weights, legal random replies, and the grammar written as plain loops: an oracle.

Nothing here calls the masks, softmaxes or tree passes of crs_jax: only the trunk, which test_gpt2.py holds
against torch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.features.context import ContextFeatures
from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.items import Frozen, centred
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy

GENRES, FACETS, ASKED, NAMED, NEAR = 2, 5, 4, 3, 4
HUGE = 100.0  # of what must never be sampled: a logit of such a row would win at once


def make_layout(words=11, items=5, act_items=2, unused=()) -> Layout:
    return Layout(words, words + 6, items, act_items, *range(words, words + 6), unused=unused)


def make_policy(
    seed=0, layout=None, *, width=16, layers=2, heads=2, positions=64, noise=0.3, decoder=GPT2Config, **config
) -> Policy:
    """Random weights everywhere, and huge rows behind both tables."""
    layout = layout or make_layout()
    content_NE = np.random.default_rng([seed, 1]).normal(size=(layout.num_items, 6)).astype(np.float32)
    attributes_NF = np.random.default_rng([seed, 3]).normal(size=(layout.num_items, FACETS)).astype(np.float32)
    shape = decoder(layers, width, heads, positions, **config)
    graph, params, frozen = empty_policy(shape, layout, content_NE, attributes_NF)
    return nnx.merge(graph, random_params(params, layout, seed, noise), frozen)


def empty_policy(config, layout, content_NE, attributes_NF=None):
    """Graph, parameters as shapes, and the items' content: a policy without the compilation of its first values."""
    attributes = () if attributes_NF is None else (None, attributes_NF, GENRES, ASKED)
    build = functools.partial(Policy, config, layout, content_NE, *attributes)
    graph, params, frozen = split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    rows = frozen["items"]["content"].shape[0] - layout.num_items
    popular_N1 = np.linspace(-1, 1, layout.num_items, dtype=np.float32)[:, None]
    attributes_NF = np.zeros((layout.num_items, 0), np.float32) if attributes_NF is None else attributes_NF
    known_NE = np.concatenate([centred(content_NE), attributes_NF, popular_N1], 1)
    frozen["items"]["content"] = jnp.asarray(np.pad(known_NE, ((0, rows), (0, 0))))
    return graph, params, frozen


def split(model):
    """Graph, parameters and frozen arrays."""
    graph, params, frozen = nnx.split(model, nnx.Param, Frozen)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def random_params(params, layout, seed, noise=0.3, huge_controls=False):
    """Normal noise; the tables' padding is huge, and on demand the control tokens that nobody samples."""
    rng = np.random.default_rng([seed, 2])
    params = jax.tree.map(lambda a: rng.normal(0, noise, a.shape).astype(a.dtype), params)
    for table in {"words", "output"} & params.keys():
        params[table][layout.num_words :] *= HUGE / noise
    if huge_controls:
        params["controls"] *= HUGE / noise
    params["items"]["residual"][layout.num_items :] *= HUGE / noise
    params["items"]["bias"][layout.num_items :] = HUGE
    for name, array in (*params["trunk"].items(), *params["trunk"]["blocks"].items()):
        if name.endswith("_scale"):
            array += 1.0
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
    """Input embeddings of words and controls, those of items, and item biases as float64."""
    graph_arrays = [policy.words, policy.controls, policy.items.residual, policy.items.content, policy.items.projection]
    words, controls, residual, content, projection = (np.asarray(a[...], np.float64) for a in graph_arrays)
    words = words[: policy.layout.num_words]
    items = words.mean(0) + residual + content @ projection
    return np.concatenate([words, words.mean(0) + controls]), items, np.asarray(policy.items.bias[...], np.float64)


def unit(hidden):
    """Over its root mean square, along the last axis: what heads read."""
    hidden = np.asarray(hidden, np.float64)
    return hidden / np.sqrt(np.mean(np.square(hidden), -1, keepdims=True) + 1e-6)


def item_scores(policy, hidden_D):
    """What a hidden state says of each item."""
    residual, content = (np.asarray(a[...], np.float64) for a in (policy.items.residual, policy.items.content))
    state = unit(hidden_D)
    return residual @ state + content @ (state @ np.asarray(policy.query.hidden_kernel[...], np.float64))


def log_odds(policy, hidden_D, known, count, any_own):
    """Of `<|say|>`, `<|end|>` and own items, by `models/decisions.py`'s words."""
    d = policy.decisions
    state = unit(hidden_D)
    say, end, own = state @ np.asarray(d.kernel[...], np.float64)
    say += 0.0 if known is None else np.asarray(known, np.float64) @ np.asarray(d.state_kernel[...], np.float64)
    return (
        say + float(d.say_bias[...][min(count, len(d.say_bias[...]) - 1)]),
        end + float(d.end_bias[...][int(any_own)]),
        own + float(d.own_bias[...]),
    )


@functools.partial(jax.jit, static_argnums=0)
def _run_trunk(graph, state, x_BTD):
    B, T, _ = x_BTD.shape
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return nnx.merge(graph, state)(x_BTD, jnp.arange(T)[None], mask)


def plain_hidden(policy, sequences):
    """Hidden states of each sequence in a row of its own, from position 0, padded on the right where nobody looks."""
    words, items, _ = tables(policy)
    table = np.concatenate([words, items])
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


def random_evidence(rng, layout, count):
    """Evidence of `count` contexts as NumPy arrays; of the first nothing is known, of the last as much as can be."""
    named = np.full((count, NAMED), -1, np.int32)
    for c in range(1, count):
        many = NAMED if c == count - 1 else rng.integers(NAMED)
        named[c, :many] = rng.permutation(layout.num_items)[:many]
    asked = rng.normal(size=(count, ASKED)).astype(np.float32)
    asked[0] = 0.0
    near = np.stack([rng.permutation(layout.num_items)[:NEAR] for _ in range(count)]).astype(np.int32)
    nearness = rng.random(near.shape).astype(np.float32)
    near[0], near[-1, -1], nearness[0], nearness[-1, -1] = -1, -1, 0.0, 0.0
    roles = rng.integers(0, 2, named.shape).astype(np.int32)
    starring = near[:, ::-1][:, :2]
    stars = np.where(starring >= 0, 0.1 + 0.1 * (starring % 2), 0.0).astype(np.float32)
    return ContextFeatures(random_vectors(rng, count), asked, named, roles, near, nearness, starring, stars)


def plain_wishes(policy, evidence):
    """(vector, content, {row: number added to its logit}, state) of each context, by loops over the items named."""
    q = policy.query
    (named_kernel, role_scale, ask, age, role_bias, gains_K, gate,
     text_kernel, asked_kernel, asked_match, named_match, match) = (
        np.asarray(a[...], np.float64)
        for a in (q.named_kernel, q.role_scale, q.attention_kernel, q.attention_age, q.attention_bias, q.gain, q.gate,
                  q.text_kernel, q.asked_kernel, q.asked_match, q.named_match, q.match_kernel)
    )  # fmt: skip
    contents = np.asarray(policy.items.content[...], np.float64)
    vectors = contents @ match.T
    E = contents.shape[1] - FACETS - 1
    out = []
    for text, asked, rows, roles, *beside in zip(*(np.asarray(part) for part in evidence[:8]), strict=True):
        there = [(int(row), int(role), n) for n, (row, role) in enumerate(zip(rows, roles, strict=True)) if row >= 0]
        state = [*asked[-3:], float(text.any()), float(asked[:GENRES].any())]
        gain = [g * np.exp(sum(s * gate[n, k] for n, s in enumerate(state))) for k, g in enumerate(gains_K)]
        vector, content = text @ text_kernel + asked @ asked_kernel, np.zeros(E + FACETS + 1)
        content[:E], content[E:-1], content[-1] = gain[0] * text, gain[2] * (asked @ asked_match), gain[4]
        if there:
            weight = np.exp([vectors[row] @ ask + role_bias[role] + age[n] for row, role, n in there])
            for (row, role, _), w in zip(there, weight / weight.sum(), strict=True):
                vector = vector + 2 * w * (vectors[row] * (1 + role_scale[role])) @ named_kernel
                content[:E] += gain[1] * contents[row, :E] / len(there)
                content[E:-1] += gain[3] * (contents[row, E:-1] @ named_match) / len(there)
        content += vector @ match
        gains = {row: float(q.named_gain[...]) for row, _, _ in there}
        for k, (near, values) in enumerate((beside[:2], beside[2:])):
            for row, value in zip(near.tolist(), values.tolist(), strict=True):
                if row >= 0:
                    gains[row] = gains.get(row, 0.0) + gain[5 + k] * value
        out.append((vector, content, gains, state))
    return out


def plain_fits(policy, evidence_of_one, rows):
    """How the items `rows` fit one context (`models/match_features.py`), by loops; zeros for none."""
    text, asked, named, _, near, nearness, starring, stars = (np.asarray(part) for part in evidence_of_one)
    contents = np.asarray(policy.items.content[...], np.float64)
    E = contents.shape[1] - FACETS - 1
    before = [contents[row] for row in named if row >= 0]
    mean = np.mean(before, 0) if before else np.zeros(contents.shape[1])
    kinds, years = slice(E, E + GENRES), slice(E + GENRES, E + FACETS)
    found = []
    for row in rows:
        item = contents[row]
        by_near, by_people = (
            sum(value for n, value in zip(rows_K, values_K, strict=True) if n == row)
            for rows_K, values_K in ((near, nearness), (starring, stars))
        )
        found.append([
            item[:E] @ text, item[:E] @ mean[:E], item[kinds] @ asked[:GENRES], item[kinds] @ mean[kinds],
            item[years] @ mean[years], item[-1], by_near, by_people, 1.0,
        ])  # fmt: skip
    return np.mean(found, 0) if found else np.zeros(9)


def next_token(policy, hidden_D, reply, temperature=1.0, item_query=None):
    """{token: probability} after a legal beginning of a reply, by the grammar's words; the query counts in the act.

    A softmax over the table (items, or words), with the odds of what stands beside it against the table's whole mass.
    """
    layout = policy.layout
    words, _, bias = tables(policy)
    act = list(reply[: list(reply).index(layout.say)]) if layout.say in reply else list(reply)
    rows = [int(token) - layout.item_offset for token in act]
    speaking = layout.say in reply
    known = None if item_query is None else [*item_query[3], *unit(item_query[0])]
    say, end, own = log_odds(policy, hidden_D, known, len(rows), bool(rows))
    scores = item_scores(policy, hidden_D)
    if speaking:
        output = words if policy.output is None else np.asarray(policy.output[...], np.float64)
        table = {w: output[w] @ np.asarray(hidden_D, np.float64) for w in range(layout.num_words)}
        table = {w: logit for w, logit in table.items() if w not in layout.unused}
        beside = softmax({layout.item_offset + n: scores[n] for n in rows}, temperature)
        odds = {token: np.exp(own / temperature) * p for token, p in beside.items()}
        odds[layout.end] = np.exp(end / temperature)
    else:
        scores = scores + bias
        if item_query is not None:
            _, content, gains, _ = item_query
            scores = scores + np.asarray(policy.items.content[...], np.float64) @ content
            for row, gain in gains.items():
                scores[row] += gain
        left = [n for n in range(layout.num_items) if n not in rows] if len(rows) < layout.act_items else []
        table = {layout.item_offset + n: scores[n] for n in left}
        odds = {layout.say: np.exp(say / temperature)}
        if not left:
            return {layout.say: 1.0}
    total = 1.0 + sum(odds.values())
    return {token: p / total for token, p in (softmax(table, temperature) | odds).items()}


def softmax(logits, temperature):
    """{token: probability} of {token: logit}."""
    top = max(logits.values(), default=0.0)
    mass = {token: np.exp((logit - top) / temperature) for token, logit in logits.items()}
    return {token: m / sum(mass.values()) for token, m in mass.items()}


def plain_likelihood(policy, prompts, replies, temperature=1.0, split_features=None):
    """Log-probability and entropy of each token of each reply: lists of floats, from one row a reply."""
    split_features = [None] * len(replies) if split_features is None else split_features
    hidden = plain_hidden(policy, [[*p, *r] for p, r in zip(prompts, replies, strict=True)])
    logp, entropy = [], []
    for prompt, reply, h, item_query in zip(prompts, replies, hidden, split_features, strict=True):
        states = h[len(prompt) - 1 :]
        at = [next_token(policy, states[r], reply[:r], temperature, item_query) for r in range(len(reply))]
        logp.append([np.log(p[int(token)]) for p, token in zip(at, reply, strict=True)])
        entropy.append([-sum(x * np.log(x) for x in p.values() if x > 0) for p in at])
    return logp, entropy


def unpad(tokens, mask):
    """Rows as lists, without what the mask leaves out."""
    return [list(map(int, t[m])) for t, m in zip(np.asarray(tokens), np.asarray(mask), strict=True)]


def pad(rows, width):
    """Lists as one float array, 0 behind their ends."""
    return np.stack([np.pad(np.asarray(row, float), (0, width - len(row))) for row in rows])
