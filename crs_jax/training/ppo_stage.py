"""The PPO stage from start to end: contexts, reference samples, iterations, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.config import slate_contexts
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.task import Task, copy_tree, new_policy, split_model
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.query import ablated
from crs_jax.rl.contexts import Contexts, take
from crs_jax.rl.frozen_models import Aligned, FrozenModels, Graphs, Model
from crs_jax.rl.reward import Normaliser, fit_normaliser
from crs_jax.runtime.checkpoint import digest
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import METRICS_LINES, MetricsWriter
from crs_jax.runtime.progress import say
from crs_jax.runtime.sharding import on_mesh, place, shard_batch
from crs_jax.runtime.versions import read_log
from crs_jax.signals.registry import weights
from crs_jax.training import loop
from crs_jax.training.batches import Batches, chosen
from crs_jax.training.checks import check_draws, check_first, check_noise, logit_scales, noise_of
from crs_jax.training.examples import fresh_instances
from crs_jax.training.health import warnings
from crs_jax.training.optimizer import make_optimizer, ppo_rates, schedule
from crs_jax.training.own_reward import own_reward
from crs_jax.training.ppo import first_extra, make_iteration, make_reference_signals
from crs_jax.training.ppo_samples import Samples
from crs_jax.training.ppo_validation import Validation
from crs_jax.training.reward import split_holdout
from crs_jax.training.seeker import find_seeker
from crs_jax.training.state import TrainState, fresh_state

REFERENCE_BATCHES = 8


def contexts_of(task: Task) -> list[tuple[int, int]]:
    """(dialogue, turn) of the training replies that PPO starts from, by `config.ppo.unseen` and `recommending`.

    On dialogues that the reward model was fitted on it remembers the reactions; elsewhere it must judge. `InputError`
    where none is left.
    """
    where, c = task.replies("train"), task.config.ppo
    if c.unseen:
        held = set(split_holdout(task)[1].tolist())
        where = [(d, t) for d, t in where if d in held]
    if c.recommending:
        proposed = {(i.dialogue, i.turn) for i in fresh_instances(task, "train")}
        where = [at for at in where if at in proposed]
    if not where:
        raise InputError("--config.ppo.recommending: no training reply that is left proposes anything new")
    return where


def make_frozen_models(task: Task, sft: Model, reward: Model) -> FrozenModels:
    """Everything that does not learn, on the mesh."""
    r = task.config.reward
    weight_S = jnp.array([*weights(r), *([r.delta] if r.function else [])], jnp.float32)
    if not jnp.abs(weight_S).sum() > 0:
        raise InputError("config.reward: all weights are 0; there is nothing to learn from")
    spread = jnp.float32(r.spread)
    return FrozenModels(sft[1], reward[1], sft[2], reward[2], jnp.asarray(task.contrast_NE), weight_S, spread)


def reference_normaliser(task: Task, graphs: Graphs, frozen_models: FrozenModels, contexts: Contexts) -> Normaliser:
    """Fitted on replies of the SFT policy to training contexts."""
    sampler, c = make_reference_signals(graphs, task.config, task.mesh), task.config.ppo
    total, signals, seed = len(contexts.prompt_CP), [], task.config.seed + c.seed + 5
    for i in range(REFERENCE_BATCHES):
        batch = shard_batch(take(contexts, chosen(seed, i, total, c.contexts)), task.mesh)
        signals.append(sampler(frozen_models, batch, jax.random.fold_in(jax.random.key(seed), i)))
        if i == 0 and c.checks:
            check_draws(signals[0], sampler(frozen_models, batch, jax.random.key(0)), c.temperature)
    found = jax.block_until_ready(jnp.concatenate(signals))
    if graphs.own is not None:
        graphs.own.check()
    return fit_normaliser(found, frozen_models.weight_S)


def open_evidence(task: Task, sft: Model) -> Model:
    """The SFT policy with all kinds of evidence before it: it says the same, and can learn to read them."""
    seeing = task.config.copy_and_resolve_references()
    with seeing.unlocked():
        seeing.model.leave_out, seeing.model.init = (), "scratch"
    graphdef = split_model(new_policy(dataclasses.replace(task, config=seeing)))[0]
    query = ablated(sft[1]["query"], tuple(task.config.model.leave_out))
    return graphdef, place({**sft[1], "query": query}, task.mesh), sft[2]


def build(task: Task, sft: Model, reward: Model) -> tuple[Graphs, Any, FrozenModels]:
    """Graph definitions, the first parameters of the actor-critic, and the frozen models."""
    opened = open_evidence(task, sft) if task.config.ppo.evidence == "all" else None
    policy = nnx.merge(*(opened or sft))
    separate = task.config.model.value == "separate"
    critic = nnx.merge(sft[0], copy_tree(sft[1]), sft[2]) if separate else None
    graph, params, _ = split_model(ActorCritic(policy, task.config.model.value, critic))
    graphs = Graphs(graph, sft[0], reward[0], own_reward(task), None if opened is None else opened[0])
    return graphs, copy_tree(place(params, task.mesh)), make_frozen_models(task, sft, reward)


class PPOStage(loop.Stage):
    """Iterations from training contexts, validation on held-out ones; stops where these no longer find people's items.

    Args:
      task, writer: where it works.
      sft: the policy that it starts from.
      graphs, frozen_models: `build`.
      where, contexts: what it starts from (`contexts_of`).
    """

    name, label, unit, shown = "ppo", "PPO", "iterations", ("reward", "kl")
    log_every = agree_every = 1

    def __init__(
        self, task: Task, writer: MetricsWriter, sft: Model, graphs: Graphs, frozen_models: FrozenModels,
        where: list[tuple[int, int]], contexts: Contexts,
    ):  # fmt: skip
        c = task.config.ppo
        self.task, self.writer, self.graphs, self.frozen_models = task, writer, graphs, frozen_models
        self.steps, self.eval_every = c.iterations, max(c.iterations // c.checks_a_run, 1)
        self.optimizer = make_optimizer(ppo_rates(task.config), c.warmup, c.iterations, c.clip_norm, c.decay_to)
        self._rate = schedule(c.learning_rate, c.warmup, c.iterations, c.decay_to)
        self._where, self._contexts, seed = where, contexts, task.config.seed + c.seed
        self._key = jax.random.key(seed + 4)
        self._count, lengths = slate_contexts(task.config), np.asarray(contexts.mask_CP).sum(1)
        self._batches = Batches(lengths, self._count, contexts.mask_CP.shape[1], c.buckets, seed)
        self._noise: float | None = None
        self._warned: set[str] = set()
        continuation: tuple[Any, Any] = find_seeker(task, writer, sft) if c.turns > 1 else (None, None)
        self._talk, self._seeker = continuation
        made_of = graphs, self.optimizer, task.config, task.mesh, *([] if self._talk is None else [self._talk])
        self._program = functools.cache(lambda width: make_iteration(*made_of))  # one for each width of prompts

    def begin(self, resumed: loop.Resumed, params: Any, result: Any) -> loop.Kept:
        """With the reward's normaliser, which a resumed stage has, and validation before the first iteration."""
        saved, c = resumed.saved, self.task.config.ppo
        if saved is None:
            normaliser = reference_normaliser(self.task, self.graphs, self.frozen_models, self._contexts)
            result = {"policy": copy_tree(params["policy"]), "normaliser": normaliser._asdict()}
        self.normaliser, floor = Normaliser(**result["normaliser"]), 0.0 if saved is None else saved.floor
        self.validation = Validation(self.task, self.graphs, self.frozen_models)
        self._samples = Samples(self.task, self.validation, params["policy"], self.normaliser)
        if saved is None and (found := self._validated(0, params["policy"])):
            floor = c.hr_floor * found["validation/hr@10"]
        if c.hr_floor and not floor:
            raise InputError(
                f"--config.ppo.hr_floor={c.hr_floor}: the SFT policy has no hit at 10 on the {self.validation.count} "
                "validation contexts, so there is nothing to hold; use 0"
            )
        return loop.Kept(result, floor=floor)

    def batches(self, first: int) -> Iterator[Contexts]:
        """Contexts, prompts as wide as the longest of them needs."""
        for number in itertools.count(first):
            yield take(self._contexts, *self._batches(number))

    def step(self, number: int, state: TrainState, batch: Contexts) -> tuple[TrainState, dict[str, Any]]:
        """One iteration."""
        seeking = () if self._talk is None else (self._seeker, self._dialogues(number))
        iteration = self._program(batch.prompt_CP.shape[1])
        return iteration(
            state, self.frozen_models, self.normaliser, shard_batch(batch, self.task.mesh), self._key, *seeking
        )  # fmt: skip

    def _dialogues(self, number: int) -> jax.Array:
        """(dialogue, turn) `[C, 2]` of the contexts of an iteration that are replied to."""
        index, _ = self._batches(number - 1)
        return jnp.array([self._where[i] for i in index[:: self._count // self.task.config.ppo.contexts]], jnp.int32)

    def check(self, number: int, values: dict[str, float], state: TrainState, batch: Contexts) -> None:
        """Raises what a reward of one's own raised, too."""
        if self.graphs.own is not None:
            self.graphs.own.check()
        super().check(number, values, state, batch)

    def figures(self, number: int, values: dict[str, float], batch: Contexts, seconds: float) -> dict[str, float]:
        """What is logged. The first iteration's figures say whether the program is right."""
        c, noise = self.task.config.ppo, values.pop("noise")
        if c.checks and number == 1:
            of_sft = self.graphs.policy, self.frozen_models.reference, self.frozen_models.frozen
            scales = jax.jit(on_mesh(functools.partial(logit_scales, of_sft[0]), self.task.mesh))(
                *of_sft[1:], shard_batch(batch, self.task.mesh), c.temperature
            )
            model = self.task.config.model
            check_first(values, scales, noise_of(model), model.value)
        if c.checks and number == 2 and self._noise is not None:
            check_noise(self._noise, noise)
        self._noise = noise
        hidden = ("halted", "rewards_finite")
        values = {n: x for n, x in values.items() if n not in hidden and not n.startswith("check/")}
        return {**values, "learning_rate": float(self._rate(number - 1)) * values["pace"], "seconds": seconds}

    def validate(self, number: int, state: TrainState, kept: loop.Kept) -> loop.Kept:
        """Keeps the policy unless it fell below the floor, where the stage stops."""
        found = self._validated(number, state.params["policy"])
        fell = bool(found) and found["validation/hr@10"] < kept.floor
        if jax.process_index() == 0:
            signs = warnings(logged(self.task.workdir))
            for kind, text in signs.items():
                if kind not in self._warned:
                    say(f"warning: {text}")
            self._warned |= signs.keys()
        if fell:
            say(
                f"ppo: stopped at iteration {number}: validation HR@10 of {found['validation/hr@10']:.4f} is below "
                f"--config.ppo.hr_floor={self.task.config.ppo.hr_floor} of SFT's; the policy of the check before is "
                "kept"
            )
            return dataclasses.replace(kept, stop=True)
        return dataclasses.replace(kept, result={**kept.result, "policy": copy_tree(state.params["policy"])})

    def _validated(self, number: int, policy_params: Any) -> dict[str, float]:
        found = self.validation(policy_params, self.normaliser)
        if found:
            self._samples.write(self.writer, number)
            self.writer.write("ppo", number, found)
        return found


def run_ppo(task: Task, writer: MetricsWriter, sft: Model, reward: Model) -> Aligned:
    """Aligns the SFT policy, or loads what was aligned before."""
    c = task.config.ppo
    inputs = {**task.made_from, "SFT model": digest(sft[1]), "reward model": digest(reward[1])}
    graphs, params, frozen_models = build(task, sft, reward)
    if graphs.own is not None:
        inputs["reward function"] = graphs.own.fingerprint
    resumed = loop.Resumed.of(task, "ppo", inputs)
    blank = Normaliser(jnp.zeros_like(frozen_models.weight_S), jnp.ones_like(frozen_models.weight_S), jnp.float32(1))
    result = resumed.kept(loop.Kept({"policy": params["policy"], "normaliser": blank._asdict()})).result
    if resumed.done:
        resumed.close(f"ppo: done before, {resumed.first} iterations")
        return Aligned(
            (graphs.aligned, result["policy"], sft[2]), graphs, frozen_models, Normaliser(**result["normaliser"])
        )
    where = contexts_of(task)
    contexts = contexts_at(task, "train", where)
    ppo_rates(task.config).show("ppo", params)
    writer.drop_after("ppo", -1 if resumed.saved is None else resumed.first)
    stage = PPOStage(task, writer, sft, graphs, frozen_models, where, contexts)
    kept = stage.begin(resumed, params, result)
    if graphs.own is not None:
        say(f"ppo: the reward has {task.config.reward.function}, weight {task.config.reward.delta:g}")
    first = first_extra(c.act_kl, c.decision_kl, c.word_kl)
    state = resumed.state(fresh_state(params, stage.optimizer, task.mesh, first))
    kept = loop.train(stage, resumed, state, kept)
    return Aligned((graphs.aligned, kept.result["policy"], sft[2]), graphs, frozen_models, stage.normaliser)


def logged(workdir: Any) -> list[dict[str, Any]]:
    """The lines of PPO in a workdir's metrics.jsonl."""
    return [line for line in read_log(workdir / METRICS_LINES) if line["stage"] == "ppo"]
