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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.data.dialogue import RECOMMENDER, SEEKER
from crs_jax.data.packing import Packer
from crs_jax.data.simulated_seeker import SimulatedSeekers
from crs_jax.models.likelihood import word_likelihood
from crs_jax.models.policy import Policy
from crs_jax.rl.ppo import masked_mean
from crs_jax.rl.rollout import sample
from crs_jax.rl.scoring import parts
from crs_jax.runtime.checkpoint import Checkpoints, digest
from crs_jax.runtime.compilation import Once
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.progress import say
from crs_jax.runtime.sharding import place, shard_batch
from crs_jax.training.episodes import Answer, Episodes, Seeker, Talk
from crs_jax.training.optimizer import make_optimizer, seeker_rates
from crs_jax.training.reward import split_holdout
from crs_jax.training.sft import DeviceRows, at_slots, batches, epoch_seed, packed_hidden
from crs_jax.training.state import Stopwatch, TrainState, apply_gradients, fresh_state, keep_layout
from crs_jax.training.supervised import Best, Supervised
from crs_jax.training.task import Task, copy_tree

Model = tuple[Any, Any, Any]  # graphdef, params, frozen


def find_seeker(task: Task, writer: MetricsWriter, sft: Model) -> tuple[Talk, Any]:
    """What goes on after a reply, by `config.ppo.seeker`, and the parameters of the seeker."""
    episodes = Episodes(task, "train")
    if task.config.ppo.seeker == "simulator":
        return Talk(episodes, simulated_seeker(task, episodes)), {}
    return Talk(episodes, model_seeker(task, episodes, sft[0])), run_seeker(task, writer, sft)


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
            block=c.ppo.decode_block, proposed=parts(last_BR, last_BR != layout.pad, layout).items_BM,
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


def run_seeker(task: Task, writer: MetricsWriter, sft: Model) -> Any:
    """Fits or loads the seeker's model; its parameters, of the epoch with the lowest validation loss.

    It has a checkpoint of its own, written each epoch: a run that was cut off goes on from there.
    """
    c, (graphdef, start, frozen) = task.config, sft
    numbers = split_holdout(task)[0] if c.ppo.unseen else np.arange(len(task.corpus.train))
    inputs = {
        **task.made_from,
        "SFT model": digest(start),
        "choice of dialogues": hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest()[:16],
    }
    checkpoints, spent = Checkpoints(task.workdir, "seeker", c, inputs), Stopwatch()
    packer = seeker_packer(task, "train", numbers)
    o, rows = c.sft, c.sft.rows
    per_epoch = len(packer.epoch(rows=rows, crop=o.crop, rng=epoch_seed(task, "seeker", 0)))
    held = seeker_packer(task, "validation").epoch(rows=rows, crop=0.0, rng=epoch_seed(task, "seeker", 0))
    if not per_epoch or not held:
        where = "data.validation_dialogues" if per_epoch else "data.max_train_dialogues"
        raise InputError(f"--config.{where}: no seeker says anything there; the seeker's model needs some that do")
    steps = max(round(c.seeker.epochs * per_epoch), 1)
    optimizer = make_optimizer(seeker_rates(c), o.warmup, steps, o.clip_norm)
    best, state = Best.of([start]), fresh_state(copy_tree(start), optimizer, task.mesh)
    saved = checkpoints.latest()
    if saved is not None:
        best = best.restored(checkpoints, saved)
        if saved.done:
            say(f"seeker: done before, {saved.step} steps, validation loss {best.loss[0]:.4f}")
            checkpoints.close()
            return best.params[0]
        state = checkpoints.restore(saved.step, "state", state)
    seeker_rates(c).show("seeker", start)
    first = 0 if saved is None else saved.step
    writer.drop_after("seeker", first)

    def step(state: TrainState, frozen: Any, rows: DeviceRows, key: jax.Array):
        step_key = jax.random.fold_in(key, state.step)

        def loss(params):
            return seeker_loss(nnx.merge(graphdef, params, frozen), rows, c.data.window, step_key)

        value, grads = jax.value_and_grad(loss)(state.params)
        healthy = jnp.isfinite(value) & ~state.halted
        params, opt_state, norm, made = apply_gradients(
            optimizer, grads, state.params, state.opt_state, healthy, state.step
        )
        halted = state.halted | ~made
        new = TrainState(state.step + 1, params, opt_state, halted, state.extra)
        return keep_layout(new, task.mesh), {"loss": value, "grad_norm": norm, "halted": halted}

    def held_loss(params: Any, frozen: Any, rows: DeviceRows) -> tuple[jax.Array, jax.Array]:
        return seeker_loss(nnx.merge(graphdef, params, frozen), rows, c.data.window, None), rows["word_mask_RW"].sum()

    run, look = Once("seeker step", step, task.mesh, donate=0), Once("seeker loss", held_loss, task.mesh)
    key = jax.random.key(c.seed + 8)

    def validate(params: Any) -> dict[str, float]:
        losses = [look(params, frozen, shard_batch(some, task.mesh)) for some in held]
        return {"loss": sum(float(m) * float(n) for m, n in losses) / sum(float(n) for _, n in losses)}

    stage = Supervised(
        stage="seeker", label="the seeker's model", task=task, writer=writer, checkpoints=checkpoints, steps=steps,
        look=per_epoch, batch=lambda number, given: [given[1]],
        step=lambda _, state, batch: run(state, frozen, shard_batch(batch, task.mesh), key), validate=validate,
    )  # fmt: skip
    given = batches(packer, task, "seeker", rows, o.crop)
    return place(stage.run([state], best, given, first, lambda: spent.since(saved))[0], task.mesh)
