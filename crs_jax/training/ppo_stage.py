"""The PPO stage from start to end: contexts, reference samples, iterations, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.config import slate_contexts
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.query import deafened
from crs_jax.rl.reward import Normaliser, fit_normaliser
from crs_jax.runtime.checkpoint import Checkpoints, Saved, digest
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.interruption import Pace, leave_if_asked, saving
from crs_jax.runtime.metrics import MetricsWriter, read_json_lines
from crs_jax.runtime.progress import Progress, say
from crs_jax.runtime.sharding import on_mesh, place, shard_batch
from crs_jax.training.batches import Batches, chosen, take
from crs_jax.training.checks import check_draws, check_first, check_noise, logit_scales, noise_of
from crs_jax.training.contexts import Contexts, contexts_at
from crs_jax.training.examples import fresh_instances
from crs_jax.training.halt import stop_if_halted
from crs_jax.training.health import warnings
from crs_jax.training.judging import Aligned, Graphs, Judges, Model
from crs_jax.training.optimizer import make_optimizer, ppo_rates, schedule
from crs_jax.training.own_reward import own_reward
from crs_jax.training.ppo import first_extra, make_iteration, make_sampler
from crs_jax.training.ppo_samples import Samples
from crs_jax.training.ppo_validation import Validation
from crs_jax.training.reward import split_holdout
from crs_jax.training.seeker import find_seeker
from crs_jax.training.state import Stopwatch, fresh_state
from crs_jax.training.task import Task, copy_tree, new_policy, split_model

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


def make_judges(task: Task, sft: Model, reward: Model) -> Judges:
    """Everything that does not learn, on the mesh."""
    r = task.config.reward
    weights = [r.alpha, r.beta, r.gamma, *([r.delta] if r.function else [])]
    weight_S = jnp.array(weights, jnp.float32)
    if not jnp.abs(weight_S).sum() > 0:
        raise InputError("config.reward: alpha, beta, gamma and delta are all 0; there is nothing to learn from")
    spread = jnp.float32(r.spread)
    return Judges(sft[1], reward[1], sft[2], reward[2], jnp.asarray(task.contrast_NE), weight_S, spread)


def reference_normaliser(task: Task, graphs: Graphs, judges: Judges, contexts: Contexts) -> Normaliser:
    """Fitted on replies of the SFT policy to training contexts."""
    sampler, c = make_sampler(graphs, task.config, task.mesh), task.config.ppo
    total, signals, seed = len(contexts.prompt_CP), [], task.config.seed + c.seed + 5
    for i in range(REFERENCE_BATCHES):
        batch = shard_batch(take(contexts, chosen(seed, i, total, c.contexts)), task.mesh)
        signals.append(sampler(judges, batch, jax.random.fold_in(jax.random.key(seed), i)))
        if i == 0 and c.checks:
            check_draws(signals[0], sampler(judges, batch, jax.random.key(0)), c.temperature)
    found = jax.block_until_ready(jnp.concatenate(signals))
    if graphs.own is not None:
        graphs.own.check()
    return fit_normaliser(found, judges.weight_S)


def open_evidence(task: Task, sft: Model) -> Model:
    """The SFT policy with all kinds of evidence before it: it says the same, and can learn to read them."""
    seeing = task.config.copy_and_resolve_references()
    with seeing.unlocked():
        seeing.model.leave_out, seeing.model.init = (), "scratch"
    graphdef = split_model(new_policy(dataclasses.replace(task, config=seeing)))[0]
    query = deafened(sft[1]["query"], tuple(task.config.model.leave_out))
    return graphdef, place({**sft[1], "query": query}, task.mesh), sft[2]


def build(task: Task, sft: Model, reward: Model) -> tuple[Graphs, Any, Judges]:
    """Graph definitions, the first parameters of the actor-critic, and the judges."""
    opened = open_evidence(task, sft) if task.config.ppo.evidence == "all" else None
    policy = nnx.merge(*(opened or sft))
    separate = task.config.model.value == "separate"
    critic = nnx.merge(sft[0], copy_tree(sft[1]), sft[2]) if separate else None
    graph, params, _ = split_model(ActorCritic(policy, task.config.model.value, critic))
    graphs = Graphs(graph, sft[0], reward[0], own_reward(task), None if opened is None else opened[0])
    return graphs, copy_tree(place(params, task.mesh)), make_judges(task, sft, reward)


def run_ppo(task: Task, writer: MetricsWriter, sft: Model, reward: Model) -> Aligned:
    """Aligns the SFT policy, or loads what was aligned before."""
    c = task.config.ppo
    inputs = {**task.made_from, "SFT model": digest(sft[1]), "reward model": digest(reward[1])}
    graphs, params, judges = build(task, sft, reward)
    if graphs.own is not None:
        inputs["reward function"] = graphs.own.fingerprint
    checkpoints, spent = Checkpoints(task.workdir, "ppo", task.config, inputs), Stopwatch()
    blank = Normaliser(jnp.zeros_like(judges.weight_S), jnp.ones_like(judges.weight_S), jnp.float32(1))
    result = {"policy": params["policy"], "normaliser": blank._asdict()}
    saved = checkpoints.latest()
    if saved is not None:
        result = checkpoints.restore(saved.step, "result", result)
        if saved.done:
            say(f"ppo: done before, {saved.step} iterations")
            checkpoints.close()
            policy = (graphs.aligned, result["policy"], sft[2])
            return Aligned(policy, graphs, judges, Normaliser(**result["normaliser"]))

    where = contexts_of(task)
    contexts = contexts_at(task, "train", where)
    rates = ppo_rates(task.config)
    optimizer = make_optimizer(rates, c.warmup, c.iterations, c.clip_norm, c.decay_to)
    rate = schedule(c.learning_rate, c.warmup, c.iterations, c.decay_to)
    state = fresh_state(params, optimizer, task.mesh, first_extra(c.act_kl, c.decision_kl, c.word_kl))
    if saved is not None:
        state = checkpoints.restore(saved.step, "state", state)
        normaliser = Normaliser(**result["normaliser"])
    else:
        normaliser = reference_normaliser(task, graphs, judges, contexts)
        result = {"policy": copy_tree(params["policy"]), "normaliser": normaliser._asdict()}
    rates.show("ppo", params)
    writer.drop_after("ppo", -1 if saved is None else saved.step)
    validation = Validation(task, graphs, judges)
    samples = Samples(task, validation, params["policy"], normaliser)
    floor = 0.0 if saved is None else saved.floor
    if saved is None and (at_first := validation(params["policy"], normaliser)):
        samples.write(writer, 0)
        writer.write("ppo", 0, at_first)
        floor = c.hr_floor * at_first["validation/hr@10"]
    if c.hr_floor and not floor:
        raise InputError(
            f"--config.ppo.hr_floor={c.hr_floor}: the SFT policy has no hit at 10 on the {validation.count} validation "
            "contexts, so there is nothing to hold; use 0"
        )
    talk, seeker = find_seeker(task, writer, sft) if c.turns > 1 else (None, None)
    made_of = graphs, optimizer, task.config, task.mesh, *([] if talk is None else [talk])
    program = functools.cache(lambda width: make_iteration(*made_of))  # one for each width of prompts
    lengths, seed = np.asarray(contexts.mask_CP).sum(1), task.config.seed + c.seed
    count = slate_contexts(task.config)
    batches = Batches(lengths, count, contexts.mask_CP.shape[1], c.buckets, seed)
    if graphs.own is not None:
        say(f"ppo: the reward has {task.config.reward.function}, weight {task.config.reward.delta:g}")
    if saved is not None:
        say(f"ppo: goes on after iteration {saved.step}")
    key = jax.random.key(seed + 4)
    first, pending, noise = 0 if saved is None else saved.step, None, None
    save_every = max(c.iterations // c.checks_a_run, 1)
    clock, pace = time.monotonic(), Pace(task.config.save_minutes)
    warned: set[str] = set()

    def warn() -> None:
        """Says what the log so far gives reason to look at, each kind once."""
        for kind, text in warnings(logged(task.workdir)).items():
            if kind not in warned:
                warned.add(kind)
                say(f"warning: {text}")

    def report(number: int, metrics: dict[str, Any], batch: Contexts) -> None:
        nonlocal noise, clock
        values = {name: float(value) for name, value in metrics.items()}
        if graphs.own is not None:
            graphs.own.check()
        stop_if_halted(task.workdir, "ppo", number, values, state, batch)
        if c.checks:
            if number == 1:
                of_sft = graphs.policy, judges.reference, judges.frozen
                scales = jax.jit(on_mesh(functools.partial(logit_scales, of_sft[0]), task.mesh))(
                    *of_sft[1:], shard_batch(batch, task.mesh), c.temperature
                )
                check_first(values, scales, noise_of(task.config.model), task.config.model.value)
            if number == 2 and noise is not None:
                check_noise(noise, values["noise"])
        noise = values.pop("noise")
        values = {name: value for name, value in values.items() if not name.startswith("check/")}
        del values["halted"], values["rewards_finite"]
        now = time.monotonic()
        writer.write("ppo", number, {**values, "seconds": now - clock})
        clock = now
        progress.update(reward=values["reward"], kl=values["kl"])

    def save(number: int, done: bool) -> None:
        kept = Saved(
            step=number, done=done, seconds=spent.since(saved), floor=floor, state=state, result=result
        )  # fmt: skip
        checkpoints.save(kept)

    with Progress(c.iterations, "PPO", "iterations", done=first) as progress, checkpoints, saving():
        if c.iterations == 0:  # the SFT policy as it is, a control
            save(0, done=True)
        for number in range(first + 1, c.iterations + 1):
            index, width = batches(number - 1)
            batch = take(contexts, index, width)
            seeking = (
                ()
                if talk is None
                else (seeker, jnp.array([where[i] for i in index[:: count // c.contexts]], jnp.int32))
            )
            state, metrics = program(width)(state, judges, normaliser, shard_batch(batch, task.mesh), key, *seeking)
            if pending is not None:
                report(*pending)
            metrics["learning_rate"] = rate(number - 1) * metrics["pace"]
            pending = (number, metrics, batch)
            if number == 1 or number == first + 1:
                report(*pending)  # the checks of the first iteration come before the second
                pending = None
            check, (due, end) = number % save_every == 0 or number == c.iterations, pace(number)
            if (check or due) and pending is not None:
                report(*pending)
                pending = None
            fell = False
            if check:
                found = validation(state.params["policy"], normaliser)
                if found:
                    samples.write(writer, number)
                    writer.write("ppo", number, found)
                fell = bool(found) and found["validation/hr@10"] < floor
                if not fell:
                    result = {**result, "policy": copy_tree(state.params["policy"])}
                if jax.process_index() == 0:
                    warn()
            if check or due:
                save(number, done=fell or number == c.iterations)
                pace.saved()
            if fell:
                say(
                    f"ppo: stopped at iteration {number}: validation HR@10 of {found['validation/hr@10']:.4f} is below "
                    f"--config.ppo.hr_floor={c.hr_floor} of SFT's; the policy of the check before is kept"
                )
                break
            if end:
                leave_if_asked()
    return Aligned((graphs.aligned, result["policy"], sft[2]), graphs, judges, normaliser)


def logged(workdir: Any) -> list[dict[str, Any]]:
    """The lines of PPO in a workdir's metrics.jsonl."""
    return [line for line in read_json_lines(workdir / "metrics.jsonl") if line["stage"] == "ppo"]
