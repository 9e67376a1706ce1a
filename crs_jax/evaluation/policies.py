"""What a policy does on held-out contexts, batched on device: rankings, likelihoods, replies and their rewards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from crs_jax.inputs.replies import reply_nll
from crs_jax.inputs.task import Task
from crs_jax.rl import ppo
from crs_jax.rl.contexts import Contexts, after_rec, take
from crs_jax.rl.forward import policy_likelihood
from crs_jax.rl.frozen_models import Aligned, Graphs, Model, predict_signals
from crs_jax.rl.reward import score
from crs_jax.rl.sampling import Replies, keys_of, sample
from crs_jax.runtime.progress import Progress
from crs_jax.runtime.sharding import everywhere, on_mesh, shard_batch


class Judged(NamedTuple):
    """Replies to n contexts and what the reward model and the SFT reference say of them, NumPy, leading axis n.

    Attributes:
      tokens_BR, mask_BR: the replies after `<|rec|>`.
      reward_B: total; signal_BS: its standardised parts, NaN where one does not exist.
      spread_B: standard deviation of the total over an ensemble's members; 0 for one reward model alone.
      act_kl_B, word_kl_B: k1 against the SFT policy, nats a reply.
      act_entropy_B, word_entropy_B: summed over the reply's act and word tokens, nats.
      act_tokens_B, word_tokens_B: how many these are.
      ended_B: has `<|end|>`.
    """

    tokens_BR: np.ndarray
    mask_BR: np.ndarray
    reward_B: np.ndarray
    signal_BS: np.ndarray
    spread_B: np.ndarray
    act_kl_B: np.ndarray
    word_kl_B: np.ndarray
    act_entropy_B: np.ndarray
    word_entropy_B: np.ndarray
    act_tokens_B: np.ndarray
    word_tokens_B: np.ndarray
    ended_B: np.ndarray


def batches(count: int, size: int, label: str) -> Iterator[tuple[np.ndarray, int]]:
    """(`size` row numbers, how many of them are real): the last batch repeats the last row. Shows progress where there
    is a label.
    """
    with Progress(count, label, "contexts", enabled=bool(label)) as progress:
        for start in range(0, count, size):
            index = np.arange(start, start + size)
            real = min(size, count - start)
            yield np.minimum(index, count - 1), real
            progress.update(real)


def run_batched(task: Task, function: Callable, count: int, inputs: Any, label: str) -> Any:
    """Applies `function(batch)` over rows of the host tree `inputs`; joins the trees it returns.

    It is not told the number of the batch: nothing may depend on how rows are batched.
    """
    size = task.config.evaluation.batch
    out = []
    for index, real in batches(count, size, label):
        batch = shard_batch(jax.tree.map(lambda a, index=index: a[index], inputs), task.mesh)
        result = function(batch)
        out.append(jax.tree.map(lambda a, real=real: np.asarray(a)[:real], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *out)


@functools.cache
def _ranker(graphdef: Any, mesh: Mesh):
    def run(params, frozen, contexts):
        policy = nnx.merge(graphdef, params, frozen)
        hidden_BD, tables, item_query = after_rec(policy, contexts)
        logits_BN = policy.item_logits(policy.acting(hidden_BD, item_query), tables, item_query.beside)
        return logits_BN[:, : policy.layout.num_items]

    return jax.jit(on_mesh(run, mesh), out_shardings=everywhere(mesh))


@functools.cache
def _likelihood(graphdef: Any, mesh: Mesh):
    return jax.jit(on_mesh(functools.partial(reply_nll, graphdef), mesh), out_shardings=everywhere(mesh))


@functools.cache
def _generator(graphdef: Any, mesh: Mesh, reply_tokens: int, greedy: bool):
    def run(params, frozen, contexts, number_B, key, temperature):
        policy = nnx.merge(graphdef, params, frozen)
        replies = sample(
            policy,
            contexts.prompt_CP,
            contexts.mask_CP,
            keys_of(key, number_B),
            group=1,
            features=contexts.features,
            reply_tokens=reply_tokens,
            temperature=temperature,
            greedy=greedy,
        )
        return replies.tokens_BR, replies.mask_BR

    return jax.jit(on_mesh(run, mesh), out_shardings=everywhere(mesh))


@functools.cache
def _judge(graph: Any, graphs: Graphs, mesh: Mesh, exact: bool, clip: float, temperature: float):
    def run(params, frozen_models, normaliser, contexts, tokens, mask):
        replies = Replies(tokens, mask, jnp.zeros(tokens.shape))
        say_JBS, end_JBS, by_formula, split = predict_signals(graphs, frozen_models, contexts, replies, exact)
        scores = score(say_JBS, end_JBS, by_formula, normaliser, frozen_models.weight_S, clip, frozen_models.spread)
        own = policy_likelihood(graph, params, frozen_models.frozen, contexts, replies, temperature)
        reference = policy_likelihood(
            graphs.policy, frozen_models.reference, frozen_models.frozen, contexts, replies, temperature
        )
        k1_BR = ppo.kl_k1(own.logp_BR, reference.logp_BR)
        over = (split.act_BR, split.word_BR)
        kl = [jnp.where(part, k1_BR, 0.0).sum(-1) for part in over]
        entropy = [jnp.where(p, own.entropy_BR, 0.0).sum(-1) for p in over]
        tokens_of = [p.sum(-1) for p in over]
        scored = (scores.total_B, scores.signal_BS, scores.spread_B)
        return tokens, mask, *scored, *kl, *entropy, *tokens_of, split.ended_B

    return jax.jit(on_mesh(run, mesh), out_shardings=everywhere(mesh))


def ranking_scores(task: Task, model: Model, contexts: Contexts, label: str) -> np.ndarray:
    """Logits of all N items right after `<|rec|>`, `[I, N]` float32: they see the context alone."""
    graphdef, params, frozen = model
    run = _ranker(graphdef, task.mesh)
    return run_batched(task, lambda c: run(params, frozen, c), len(contexts.prompt_CP), contexts, label)


def reference_nll(task: Task, model: Model, contexts: Contexts, replies: tuple, label: str) -> dict[str, float]:
    """Summed likelihood of the human replies (see `reply_nll`)."""
    graphdef, params, frozen = model
    run = _likelihood(graphdef, task.mesh)
    count, size = len(contexts.prompt_CP), task.config.evaluation.batch
    totals: dict[str, float] = {}
    for index, real in batches(count, size, label):
        part = take(contexts, index)
        mask_BR = replies[1][index] & (np.arange(size) < real)[:, None]
        arrays = shard_batch((part.prompt_CP, part.mask_CP, replies[0][index], mask_BR, part.features), task.mesh)
        for name, value in run(params, frozen, *arrays).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def generate(
    task: Task, model: Model, contexts: Contexts, temperature: float, seed: int, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """One reply a context, tokens `[B, R]` and mask; the mode of each step at temperature 0.

    Context b draws by its own key, a function of `seed` and b.
    """
    graphdef, params, frozen = model
    run, key = _generator(graphdef, task.mesh, task.config.data.reply_tokens, temperature == 0), jax.random.key(seed)
    divisor = jnp.float32(temperature or 1.0)  # an argument, so that one program serves all temperatures
    count = len(contexts.prompt_CP)
    inputs = (contexts, np.arange(count, dtype=np.int32))
    return run_batched(task, lambda batch: run(params, frozen, *batch, key, divisor), count, inputs, label)


def judge_replies(
    task: Task,
    aligned: Aligned,
    model: Model,
    contexts: Contexts,
    tokens_BR: np.ndarray,
    mask_BR: np.ndarray,
    label: str,
) -> Judged:
    """Scores replies as in training; KL and entropy are those of the policy `model` that wrote them."""
    c, temperature = task.config.reward, task.config.ppo.temperature
    graph, params, _ = model
    run = _judge(graph, aligned.graphs, task.mesh, c.relevance == "exact", c.clip, temperature)
    inputs = (contexts, tokens_BR, mask_BR)
    return Judged(
        *run_batched(
            task,
            lambda batch: run(params, aligned.frozen_models, aligned.normaliser, *batch),
            len(tokens_BR),
            inputs,
            label,
        )
    )
