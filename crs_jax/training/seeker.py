"""Who answers in episodes of several turns: a language model of what seekers say, or the simulator's seekers.

The model has the policy's architecture and starts from the SFT policy, which has read the seekers' side all along. It
is fitted on all that seekers said, packed as in SFT, of the dialogues that the reward model is fitted on too where PPO
starts from the others (`config.ppo.unseen`): of a dialogue that it was fitted on it would remember the answer. It
speaks words, and of items those alone that were proposed to it last; what seekers say of other items is read, not
learned. A dialogue that ends with the recommender's message is learned as one after which the seeker says nothing, so
an answer without a word is a seeker who leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.data.dialogue import RECOMMENDER, SEEKER
from crs_jax.data.packing import Packer, Rows
from crs_jax.data.simulated_seeker import SimulatedSeekers
from crs_jax.inputs.task import Task, copy_tree
from crs_jax.models.likelihood import word_likelihood
from crs_jax.models.policy import Policy
from crs_jax.rl.ppo import masked_mean
from crs_jax.rl.sampling import sample
from crs_jax.rl.scoring import token_masks
from crs_jax.runtime.checkpoint import digest
from crs_jax.runtime.compilation import CompiledOnce
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.sharding import place, shard_batch
from crs_jax.training import loop
from crs_jax.training.episodes import Answer, Continuation, Episodes, Seeker
from crs_jax.training.optimizer import make_optimizer, seeker_rates
from crs_jax.training.reward import split_holdout
from crs_jax.training.sft import DeviceRows, at_slots, batches, epoch_seed, packed_hidden
from crs_jax.training.state import TrainState, fresh_state

Model = tuple[Any, Any, Any]  # graphdef, params, frozen


def find_seeker(task: Task, writer: MetricsWriter, sft: Model) -> tuple[Continuation, Any]:
    """What goes on after a reply, by `config.ppo.seeker`, and the parameters of the seeker."""
    episodes = Episodes(task, "train")
    if task.config.ppo.seeker == "simulator":
        return Continuation(episodes, simulated_seeker(task, episodes)), {}
    return Continuation(episodes, model_seeker(task, episodes, sft[0])), run_seeker(task, writer, sft)


def model_seeker(task: Task, episodes: Episodes, graphdef: Any) -> Seeker:
    """Answers sampled from the model, its parameters and frozen arrays given."""
    c, layout, R = task.config, task.layout, task.config.data.reply_tokens
    P = c.data.context_tokens

    def answer(params, frozen, where_C2, said_BUR, number, key) -> Answer:
        def host(where_C2: Any, said_BUR: Any) -> tuple[np.ndarray, np.ndarray]:
            return episodes.prompts(np.asarray(where_C2), np.asarray(said_BUR))

        B = len(said_BUR)
        shapes = jax.ShapeDtypeStruct((B, P), jnp.int32), jax.ShapeDtypeStruct((B, P), bool)
        prompt_BP, mask_BP = jax.pure_callback(host, shapes, where_C2, said_BUR, vmap_method="sequential")
        last_BR = jnp.take(said_BUR, 2 * number - 2, axis=1)
        found = sample(
            nnx.merge(graphdef, params, frozen), prompt_BP, mask_BP, key, group=1, reply_tokens=R,
            block=c.ppo.decode_block, proposed=token_masks(last_BR, last_BR != layout.pad, layout).items_BM,
        )  # fmt: skip
        return Answer(found.tokens_BR, found.tokens_BR[:, 0] == layout.end)

    return answer


def simulated_seeker(task: Task, episodes: Episodes) -> Seeker:
    """Answers of the embedded corpus' own seekers, who know their true utilities, from the host."""
    c, t, R = task.config, task.tokenizer, task.config.data.reply_tokens
    assert task.corpus.folder is not None
    seekers = SimulatedSeekers(task.corpus.folder, c.simulator, c.seed)

    def host(where_C2: Any, said_BUR: Any, key_data: Any) -> tuple[np.ndarray, np.ndarray]:
        grown, _ = episodes.dialogues(np.asarray(where_C2), np.asarray(said_BUR))
        seed = [int(x) for x in np.asarray(key_data).ravel()]
        tokens_BR, gone_B = np.full((len(grown), R), t.pad, np.int32), np.zeros(len(grown), bool)
        for b, dialogue in enumerate(grown):
            if dialogue.turns[-1].role == SEEKER:  # who has left, or the answer would be to themselves
                gone_B[b] = True
                continue
            rng = np.random.default_rng([*seed, b])
            turn, stays = seekers.answer(dialogue.dialogue_id, dialogue.turns, rng)
            tokens = t.encode_turn(turn, task.corpus.catalogue, c.data.act_items, R)[1:]
            tokens_BR[b, : len(tokens)], gone_B[b] = tokens, not stays
        return tokens_BR, gone_B

    def answer(params, frozen, where_C2, said_BUR, number, key) -> Answer:
        B = len(said_BUR)
        shapes = jax.ShapeDtypeStruct((B, R), jnp.int32), jax.ShapeDtypeStruct((B,), bool)
        given = where_C2, said_BUR, jax.random.key_data(key)
        return Answer(*jax.pure_callback(host, shapes, *given, vmap_method="sequential"))

    return answer


def seeker_packer(task: Task, split: str, numbers: np.ndarray | None = None) -> Packer:
    """Packer of the seeker's side of a split, or of its dialogues of the given numbers, with their endings."""
    c, t = task.config, task.tokenizer
    every = range(len(task.dialogues(split))) if numbers is None else numbers.tolist()
    encoded, roles = [], []
    for d in every:
        said = [turn.role for turn in task.dialogues(split)[d].turns]
        leaves = said[-1] == RECOMMENDER
        encoded.append([*task.encoded[split][d], *([[t.seeker, t.end]] if leaves else [])])
        roles.append([*said, *([SEEKER] if leaves else [])])
    return Packer(
        encoded, roles, row_tokens=c.sft.row_tokens, act_slots=c.data.act_items + 1, word_slots=c.sft.row_tokens,
        act_items=c.data.act_items, tokenizer=t, side=SEEKER,
    )  # fmt: skip


def seeker_loss(policy: Policy, rows: DeviceRows, window: int, key: jax.Array | None) -> jax.Array:
    """Mean negative log-likelihood of what seekers say, nats a token."""
    tables = policy.tables()
    hidden_RWD = at_slots(packed_hidden(policy, tables, rows, window, key), rows["word_at_RW"])
    word = word_likelihood(policy, tables, hidden_RWD, rows["word_items_RWM"], rows["word_target_RW"])
    return -masked_mean(word.logp, rows["word_mask_RW"])


class SeekerStage(loop.FittedStage):
    """Packed dialogues, the loss of what seekers say, validation on the validation split once an epoch."""

    name, label = "seeker", "the seeker's model"

    def __init__(self, task: Task, writer: MetricsWriter, graphdef: Any, frozen: Any, numbers: np.ndarray):
        c = task.config
        self.task, self.writer, self.log_every = task, writer, c.log_every
        self._frozen, self._packer, rows = frozen, seeker_packer(task, "train", numbers), c.sft.rows
        self.eval_every = len(self._packer.epoch(rows=rows, crop=c.sft.crop, rng=epoch_seed(task, "seeker", 0)))
        first = epoch_seed(task, "seeker", 0)
        self._held = seeker_packer(task, "validation").epoch(rows=rows, crop=0.0, rng=first)
        if not self.eval_every or not self._held:
            where = "data.validation_dialogues" if self.eval_every else "data.max_train_dialogues"
            raise InputError(f"--config.{where}: no seeker says anything there; the seeker's model needs some that do")
        self.steps = max(round(c.seeker.epochs * self.eval_every), 1)
        self.optimizer = make_optimizer(seeker_rates(c), c.sft.warmup, self.steps, c.sft.clip_norm)
        self._key = jax.random.key(c.seed + 8)

        def loss(params, frozen, rows: DeviceRows, key: jax.Array, _: Any):
            value = seeker_loss(nnx.merge(graphdef, params, frozen), rows, c.data.window, key)
            return value, {"loss": value}

        def held_loss(params: Any, frozen: Any, rows: DeviceRows) -> tuple[jax.Array, jax.Array]:
            value = seeker_loss(nnx.merge(graphdef, params, frozen), rows, c.data.window, None)
            return value, rows["word_mask_RW"].sum()

        self._step = loop.make_step("seeker step", loss, lambda rows: None, self.optimizer, task.mesh)
        self._held_loss = CompiledOnce("seeker loss", held_loss, task.mesh)

    def batches(self, first: int) -> Iterator[Rows]:
        """Packed rows."""
        c = self.task.config.sft
        for _, rows in loop.after(batches(self._packer, self.task, "seeker", c.rows, c.crop), first):
            yield rows

    def step(self, number: int, state: TrainState, batch: Rows) -> tuple[TrainState, dict[str, Any]]:
        """One update."""
        return self._step(state, self._frozen, shard_batch(batch, self.task.mesh), self._key)

    def scores(self, params: Any) -> dict[str, float]:
        """Mean loss of a token."""
        each = [self._held_loss(params, self._frozen, shard_batch(some, self.task.mesh)) for some in self._held]
        return {"loss": sum(float(m) * float(n) for m, n in each) / sum(float(n) for _, n in each)}


def run_seeker(task: Task, writer: MetricsWriter, sft: Model) -> Any:
    """Fits or loads the seeker's model; its parameters, of the epoch with the lowest validation loss.

    It has a checkpoint of its own, written each epoch: a run that was cut off goes on from there.
    """
    graphdef, start, frozen = sft
    numbers = split_holdout(task)[0] if task.config.ppo.unseen else np.arange(len(task.corpus.train))
    chosen = hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest()[:16]
    inputs = {**task.made_from, "SFT model": digest(start), "choice of dialogues": chosen}
    resumed = loop.Resumed.of(task, "seeker", inputs)
    kept = resumed.kept(loop.unmeasured([start]))
    if resumed.done:
        resumed.close(f"seeker: done before, {resumed.first} steps, validation loss {kept.best_loss[0]:.4f}")
        return kept.result
    stage = SeekerStage(task, writer, graphdef, frozen, numbers)
    state = resumed.state(fresh_state(copy_tree(start), stage.optimizer, task.mesh))
    seeker_rates(task.config).show("seeker", start)
    writer.drop_after("seeker", resumed.first)
    return place(loop.train(stage, resumed, state, kept).result, task.mesh)
