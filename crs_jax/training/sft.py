"""The supervised stage: next-token loss on the recommender's replies, acts and words, over packed dialogues.

Rows hold whole dialogues under a banded mask, so that each token is computed once an epoch. A token attends to its own
utterance and the `window` before it; deeper layers see a little further back, and positions count from where the piece
begins. So that replies are also learned as they are sampled, from a window that begins at position 0, a share
`config.sft.crop` of the dialogues starts at a random utterance in each epoch, and validation scores windowed prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.data.packing import Packer, Rows, slots_of
from crs_jax.evaluation.policies import reference_nll
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.features import SplitFeatures, of_split
from crs_jax.inputs.replies import reply_arrays
from crs_jax.inputs.task import Task, copy_tree, corpus_rates, new_policy, split_model
from crs_jax.models.likelihood import act_likelihood, word_likelihood
from crs_jax.models.policy import Policy, Tables
from crs_jax.rl.ppo import masked_mean
from crs_jax.runtime.compilation import CompiledOnce
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.sharding import place, shard_batch
from crs_jax.training import loop
from crs_jax.training.act_head import fit_head
from crs_jax.training.optimizer import make_optimizer, schedule, sft_rates
from crs_jax.training.state import TrainState, fresh_state

DeviceRows = dict[str, Any]  # packed rows and what goes with them, on the mesh


def banded_mask(segment_RT: jax.Array, utterance_RT: jax.Array, window: int) -> jax.Array:
    """`[R, T, T]`: causal, within a segment, and at most `window` utterances back."""
    T = segment_RT.shape[1]
    same = (segment_RT[:, :, None] == segment_RT[:, None, :]) & (segment_RT[:, :, None] > 0)
    near = utterance_RT[:, :, None] - utterance_RT[:, None, :] <= window
    return same & near & jnp.tril(jnp.ones((T, T), bool))


def packed_hidden(policy: Policy, tables: Tables, rows: DeviceRows, window: int, key: jax.Array | None) -> jax.Array:
    """Hidden states `[R, T, D]` of packed rows."""
    mask = banded_mask(rows["segment_RT"], rows["utterance_RT"], window)
    return policy.trunk(policy.embed(rows["tokens_RT"], tables), rows["position_RT"], mask, key)


def at_slots(hidden_RTD: jax.Array, slot_RA: jax.Array) -> jax.Array:
    """Hidden states `[R, A, D]` at the given places of each row."""
    return jnp.take_along_axis(hidden_RTD, slot_RA[..., None], 1)


def sft_loss(
    policy: Policy,
    rows: DeviceRows,
    window: int,
    act_weight: float,
    key: jax.Array | None,
    counts: tuple[jax.Array, jax.Array] | None = None,
    act_dropout: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss of words plus `act_weight` times that of acts, nats a token, over the global batch.

    `rows` are packed rows with the features of their act slots (`with_features`). Of a micro-batch,
    with the `counts` of acts and words in the whole batch: its share of the means. `act_dropout` is that of
    normalised hidden states at act slots, beside the trunk's own, where there is a key.
    """
    of_act, of_word = counts or (None, None)
    tables = policy.tables()
    hidden_RTD = packed_hidden(policy, tables, rows, window, key)
    wish_key = None if key is None else jax.random.fold_in(key, 1)
    item_query = policy.item_query(rows["features"], wish_key, policy.trunk.config.dropout)
    act_key = None if key is None else jax.random.fold_in(key, 2)
    acting = policy.acting(at_slots(hidden_RTD, rows["act_at_RA"]), item_query, act_key, act_dropout)
    act = act_likelihood(policy, tables, acting, rows["act_used_RAM"], rows["act_target_RA"], item_query.beside)
    word = word_likelihood(
        policy, tables, at_slots(hidden_RTD, rows["word_at_RW"]), rows["word_items_RWM"], rows["word_target_RW"]
    )
    act_loss = -masked_mean(act.logp, rows["act_mask_RA"], of_act)
    word_loss = -masked_mean(word.logp, rows["word_mask_RW"], of_word)
    loss = word_loss + act_weight * act_loss
    return loss, {"loss": loss, "act_loss": act_loss, "word_loss": word_loss}


def with_features(rows: Rows, split_features: SplitFeatures) -> Rows:
    """The rows and the features of their act slots; the packer had the whole split."""
    dialogue_RA = np.take_along_axis(rows["dialogue_RT"], rows["act_at_RA"], 1)
    turn_RA = np.take_along_axis(rows["utterance_RT"], rows["act_at_RA"], 1)
    return {**rows, "features": split_features.at(dialogue_RA, turn_RA)._replace(named_mean=None)}


def make_packer(task: Task, split: str, numbers: Sequence[int] | np.ndarray | None = None) -> Packer:
    """Packer of a split, or of its dialogues of the given `numbers` (its `dialogue_RT` then counts among those)."""
    c = task.config
    act_slots, word_slots = slots_of(c.sft.row_tokens, c.data.act_items)
    chosen = range(len(task.dialogues(split))) if numbers is None else numbers
    return Packer(
        [task.encoded[split][d] for d in chosen],
        [[turn.role for turn in task.dialogues(split)[d].turns] for d in chosen],
        row_tokens=c.sft.row_tokens,
        act_slots=act_slots,
        word_slots=word_slots,
        act_items=c.data.act_items,
        tokenizer=task.tokenizer,
    )


def epoch_seed(task: Task, stage: str, epoch: int, member: int = 0) -> np.random.Generator:
    """Randomness of one epoch's crops and order: a function of seed, stage, epoch and an ensemble's member alone."""
    return np.random.default_rng([task.config.seed, sum(stage.encode()), epoch, *([member] if member else [])])


def batches(
    packer: Packer, task: Task, stage: str, rows: int, crop: float, member: int = 0
) -> Iterator[tuple[int, Rows]]:
    """Endless (epoch, batch), the same sequence on every run."""
    epoch = 0
    while found := packer.epoch(rows=rows, crop=crop, rng=epoch_seed(task, stage, epoch, member)):
        for batch in found:
            yield epoch, batch
        epoch += 1
    raise InputError(f"{task.corpus.name}: no training dialogue of the {stage} stage has a recommender's reply")


def make_step(graphdef: Any, optimizer: Any, task: Task) -> CompiledOnce:
    """Jitted (state, frozen, rows, key) -> (state, metrics)."""
    c = task.config

    def loss(params, frozen, rows: DeviceRows, key: jax.Array, counts: tuple[jax.Array, jax.Array]):
        policy = nnx.merge(graphdef, params, frozen)
        return sft_loss(policy, rows, c.data.window, c.sft.act_weight, key, counts, c.sft.act_dropout)

    def counts(rows: DeviceRows) -> tuple[jax.Array, jax.Array]:
        return rows["act_mask_RA"].sum(), rows["word_mask_RW"].sum()

    return loop.make_step("sft step", loss, counts, optimizer, task.mesh, c.sft.accumulate, c.sft.average)


class Validation:
    """Loss of windowed prompts and human replies of the validation split, and the rank of what was recommended."""

    def __init__(self, task: Task, graphdef: Any, limit: int = 1024):
        where = task.replies("validation")
        if not where:
            raise InputError("config.data.validation_dialogues: no validation dialogue has a reply; give it more")
        chosen = np.random.default_rng(task.config.seed).permutation(len(where))[:limit]
        where = [where[i] for i in sorted(chosen)]
        of_split(task, "validation")  # its features, which the reward stage asks for too
        self._arrays = contexts_at(task, "validation", where), reply_arrays(task, "validation", where)
        self._task, self._graphdef = task, graphdef

    def __call__(self, params: Any, frozen: Any) -> dict[str, float]:
        """act_loss, word_loss (nats a token), their sum `loss`, and hr@10 of the first item of each act."""
        totals = reference_nll(self._task, (self._graphdef, params, frozen), *self._arrays, label="")
        act = totals["act_nll"] / max(totals["act_tokens"], 1)
        word = totals["word_nll"] / max(totals["word_tokens"], 1)
        return {
            "act_loss": act,
            "word_loss": word,
            "loss": act + word,
            "hr@10": totals["hits"] / max(totals["recommending"], 1),
        }


class SftStage(loop.FittedStage):
    """Packed dialogues, the loss of replies, validation by windowed prompts once an epoch."""

    name, label = "sft", "supervised fine-tuning"

    def __init__(self, task: Task, writer: MetricsWriter, graphdef: Any, frozen: Any, packer: Packer):
        c = task.config.sft
        self.task, self.writer, self.log_every = task, writer, task.config.log_every
        self.eval_every = len(packer.epoch(rows=c.rows, crop=c.crop, rng=epoch_seed(task, "sft", 0)))
        self.steps = round(c.epochs * self.eval_every)
        self.optimizer = make_optimizer(sft_rates(task.config), c.warmup, self.steps, c.clip_norm)
        self._frozen, self._packer, self._key = frozen, packer, jax.random.key(task.config.seed + 1)
        self._rate = schedule(c.learning_rate, c.warmup, self.steps)
        self._split_features, self._validation = of_split(task, "train"), Validation(task, graphdef)
        self._step = make_step(graphdef, self.optimizer, task)

    def batches(self, first: int) -> Iterator[Rows]:
        """Packed rows with the features of their act slots."""
        c = self.task.config.sft
        for _, rows in loop.after(batches(self._packer, self.task, "sft", c.rows, c.crop), first):
            yield with_features(rows, self._split_features)

    def step(self, number: int, state: TrainState, batch: Rows) -> tuple[TrainState, dict[str, Any]]:
        """One update."""
        return self._step(state, self._frozen, shard_batch(batch, self.task.mesh), self._key)

    def candidate(self, state: TrainState) -> Any:
        """The running average of the parameters, where there is one."""
        return state.extra.get("average", state.params)

    def scores(self, params: Any) -> dict[str, float]:
        """Of windowed prompts."""
        return self._validation(params, self._frozen)

    def figures(self, number: int, values: dict[str, float], batch: Rows, seconds: float) -> dict[str, float]:
        """With the rate, the epoch and the speed."""
        speed = int((batch["segment_RT"] > 0).sum()) / max(seconds, 1e-9)
        del values["halted"]
        passed = {"learning_rate": float(self._rate(number - 1)), "epoch": number / self.eval_every}
        return {**values, **passed, "tokens_per_second": speed}


def run_sft(task: Task, writer: MetricsWriter) -> tuple[Any, Any, Any]:
    """Trains or loads the SFT policy.

    Returns:
      graphdef, params of the epoch with the lowest validation loss, frozen arrays.
    """
    if not task.replies("train"):
        raise InputError("config.data: no training dialogue has a recommender's reply after the first message")
    resumed = loop.Resumed.of(task, "sft", task.made_from)
    graphdef, *arrays = split_model(new_policy(task, corpus_rates(task)))
    params, frozen = (place(tree, task.mesh) for tree in arrays)
    if resumed.done:
        kept = resumed.kept(loop.unmeasured([params]))
        resumed.close(f"sft: done before, {resumed.first} steps, validation loss {kept.best_loss[0]:.4f}")
        return graphdef, kept.result, frozen
    stage = SftStage(task, writer, graphdef, frozen, make_packer(task, "train"))
    if resumed.saved is None:
        params = fit_head(task, writer, graphdef, params, frozen)
    extra = {"average": copy_tree(params)} if task.config.sft.average > 0 else {}
    state = resumed.state(fresh_state(copy_tree(params), stage.optimizer, task.mesh, extra))
    kept = resumed.kept(loop.unmeasured([params]))
    sft_rates(task.config).show("sft", params)
    writer.drop_after("sft", resumed.first)
    if stage.steps == 0:
        kept = loop.Kept(params, (stage.scores(params)["loss"],))
    return graphdef, loop.train(stage, resumed, state, kept).result, frozen
