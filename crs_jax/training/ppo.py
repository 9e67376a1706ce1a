"""The PPO stage: one jitted iteration of rollout, scores, advantages and clipped updates, over the mesh.

Everything that learns or judges is an argument: the state (donated), the reference, the reward model and the batch of
contexts. Rewards are paid where `rl/reward.py` says, less the k1 KL penalty of each token; acts and words have their
own KL coefficients, entropies and whitening, since a reply has one or two act tokens and dozens of words. First tokens
are learnt from more contexts than are replied to (`training/slates.py`). How far all updates of an iteration move the
policy is bounded (`training/trust.py`). With `config.ppo.turns` above 1 an episode goes on after the first reply
(`training/turns.py`): later replies are rows with contexts of their own, and all rows of a context's episodes stay in
one minibatch.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.models.heads import REWARDS, SIGNALS
from crs_jax.rl import all_acts, ppo, rankwise
from crs_jax.rl.groups import group_advantages
from crs_jax.rl.reward import Normaliser, Scores, mean_of, members, score, with_relevance
from crs_jax.rl.rollout import sample
from crs_jax.rl.scoring import Parts
from crs_jax.runtime.compilation import Once
from crs_jax.runtime.sharding import after, in_parts, on_mesh
from crs_jax.training import turns
from crs_jax.training.checks import gaps
from crs_jax.training.contexts import Contexts
from crs_jax.training.health import measures
from crs_jax.training.judging import Graphs, Judges, judge
from crs_jax.training.passes import actor_pass, policy_pass
from crs_jax.training.slates import make_slates, scaled
from crs_jax.training.state import TrainState, keep_layout, select
from crs_jax.training.trust import Moved, next_pace, shortened
from crs_jax.training.update import WHITENED, Experience, has_critic, make_update


def make_sampler(graphs: Graphs, config: ConfigDict, mesh: Mesh):
    """Jitted (reference params, judges, contexts, key) -> signals of SFT samples, `[B, 3]`: reference samples."""
    c = config.ppo

    def signals(judges: Judges, contexts: Contexts, key: jax.Array) -> jax.Array:
        policy = nnx.merge(graphs.policy, judges.reference, judges.frozen)
        replies = sample(
            policy, contexts.prompt_CP, contexts.mask_CP, key, group=c.group, reply_tokens=config.data.reply_tokens,
            evidence=contexts.evidence, temperature=c.temperature, block=c.decode_block,
        )  # fmt: skip
        _, end_JBS, relevance_JB, _ = judge(graphs, judges, contexts, replies, config.reward.relevance == "exact")
        return mean_of(with_relevance(end_JBS, relevance_JB))

    return jax.jit(on_mesh(signals, mesh))


def first_extra(act_kl: float, decision_kl: float, word_kl: float) -> dict[str, jax.Array]:
    """What an iteration adapts, at its first values: KL coefficients, and the pace, which multiplies the rate."""
    first = {"act_kl": act_kl, "decision_kl": decision_kl, "word_kl": word_kl, "pace": 1.0}
    return {name: jnp.float32(value) for name, value in first.items()}


def token_rewards(
    scores: Scores,
    split: Parts,
    kl_BR: jax.Array,
    kind_BR: jax.Array,
    act_kl: jax.Array,
    decision_kl: jax.Array | float,
    word_kl: jax.Array,
    penalty: float,
) -> jax.Array:
    """Rewards `[B, R]`: scores where they fall, less the KL penalty of each token and that of a missing end.

    `kind_BR` is the part of `kl_BR` that is of whether another item is proposed.
    """
    word_B = scores.total_B - scores.act_B - penalty * ~split.ended_B
    placed_BR = ppo.place_rewards(scores.act_B, word_B, split.say_BR, split.last_BR)
    act_BR = act_kl * (kl_BR - kind_BR) + decision_kl * kind_BR
    return placed_BR - act_BR * split.act_BR - word_kl * kl_BR * split.word_BR


def make_iteration(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh, talk: turns.Talk | None = None):
    """Jitted (state, judges, normaliser, contexts, key) -> (state, metrics): one PPO iteration.

    Args:
      graphs: graph definitions.
      optimizer: of the actor-critic's parameters.
      config: the whole config; read when tracing.
      mesh: contexts are cut along its data and fsdp axes.
      talk: what goes on after a reply, where there are several turns; the function then takes, besides, the parameters
        of the seeker and the (dialogue, turn) `[C, 2]` of the contexts.

    `config.ppo.contexts` of the contexts, evenly apart, are replied to; without sums over first tokens
    (`config.ppo.all_acts` 0) that is all of them.
    Metrics are masked means over the real tokens of the global batch. With the key of the run, iteration i draws from
    `fold_in(key, i)`.
    """
    c, R, algorithm = config.ppo, config.data.reply_tokens, config.algorithm
    whitens = algorithm in WHITENED
    beyond = talk is not None or graphs.own is not None  # rewards that the score of an act alone does not hold
    update = make_update(graphs, optimizer, config, mesh)

    def iteration(
        state: TrainState, judges: Judges, normaliser: Normaliser, every: Contexts, key: jax.Array, *seeking: Any
    ):
        key = jax.random.fold_in(key, state.step)
        sample_key, order_key = jax.random.split(key)
        C, B = c.contexts, c.contexts * c.group

        def replied_to(tree: Any) -> Any:
            return jax.tree.map(lambda a: a.reshape(C, len(a) // C, *a.shape[1:])[:, 0], tree)

        contexts = replied_to(every)
        frozen = {"policy": judges.frozen} | ({"critic": judges.frozen} if config.model.value == "separate" else {})
        actor = nnx.merge(graphs.actor, state.params, frozen)
        act_kl, decision_kl, word_kl = (state.extra[f"{part}_kl"] for part in ("act", "decision", "word"))
        paid_kl = act_kl, decision_kl, word_kl
        if algorithm in ("grpo", "raft"):
            paid_kl = (jnp.float32(0),) * 3
        exact = config.reward.relevance == "exact"

        of_sft = graphs.policy, judges.reference, judges.frozen

        slates = None
        if c.all_acts:
            made_of = graphs, judges, normaliser, config, mesh
            slates = make_slates(*made_of, actor.policy, every, act_kl, decision_kl, jax.random.fold_in(sample_key, 1))
            contexts = after(contexts, slates.known.mean_C2)

        def reply(contexts: Contexts, key: jax.Array, alive_B: jax.Array | None = None) -> turns.Replied:
            """B replies to contexts, judged and rewarded; of later turns where `alive_B` says who still talks."""
            group = B // len(contexts.prompt_CP)
            replies = sample(
                actor.policy, contexts.prompt_CP, contexts.mask_CP, key, group=group, reply_tokens=R,
                evidence=contexts.evidence, temperature=c.temperature, block=c.decode_block,
            )  # fmt: skip
            if alive_B is not None:
                replies = turns.silenced(replies, alive_B, actor.policy.layout.pad)
            tokens_CGR, mask_CGR = (a.reshape(-1, group, R) for a in (replies.tokens_BR, replies.mask_BR))
            old, value_BR, first = actor_pass(actor, contexts, tokens_CGR, mask_CGR, c.temperature)
            reference, _ = policy_pass(*of_sft, contexts, replies, c.temperature)
            say_JBS, end_JBS, relevance_JB, split = judge(graphs, judges, contexts, replies, exact)
            given = normaliser, judges.weight_S, config.reward.clip, judges.spread
            scores = score(say_JBS, end_JBS, relevance_JB, *given)
            if c.shuffled_rewards:
                scores = turns.shuffled(scores, jax.random.fold_in(key, 1), alive_B)
            k1_BR, kind_BR = (ppo.kl_k1(a, b) for a, b in zip(old[::2], reference[::2], strict=True))
            learned, paid = scores, (k1_BR, kind_BR)
            if beyond and alive_B is None and slates is not None:
                row_CG = split.items_BM[:, 0].reshape(-1, group)
                acts, known = replied_to((slates.acts, slates.known))
                known_CG, listed_CG = all_acts.of_sampled(acts, known, row_CG)
                known_B, item_B = known_CG.reshape(B), k1_BR[:, 0] - kind_BR[:, 0]
                learned = scores._replace(act_B=scores.act_B - known_B, total_B=scores.total_B - known_B)
                paid = (
                    k1_BR.at[:, 0].set(jnp.where(listed_CG.reshape(B), 0.0, item_B)),
                    kind_BR.at[:, 0].set(0.0),
                )
            if whitens and c.group_baseline:
                act_B, total_B = (ppo.leave_one_out(a.reshape(-1, group)).reshape(B) for a in learned[:2])
                learned = learned._replace(act_B=act_B, total_B=total_B)
            reward_BR = token_rewards(learned, split, *paid, *paid_kl, c.missing_end_penalty)
            alive_B = jnp.ones(B, bool) if alive_B is None else alive_B
            read = [jnp.isfinite(read_JBS[..., : len(SIGNALS)]).all((0, 2)) for read_JBS in (say_JBS, end_JBS)]
            finite_B = read[0] & read[1] & ~jnp.isinf(end_JBS).any((0, 2))
            judged = finite_B, split, scores, k1_BR, kind_BR, reward_BR, alive_B
            return turns.Replied(contexts, first, turns.Played(replies, old, reference, value_BR, *judged))

        replied = [reply(contexts, sample_key)]
        if talk is not None:
            later_key = jax.random.fold_in(sample_key, 2 * R)
            later, answers = turns.go_on(talk, reply, seeking, replied[0], c.turns, later_key, judges.frozen)
            replied.append(later)
        played = turns.joined(replied)
        replies, old, reference, value_BR, finite_B, split, scores, k1_BR, kind_BR, reward_BR, alive_B = played
        if has_critic(config):
            advantage_BR, return_BR = turns.advantages(played, c)
        else:
            advantage_BR, return_BR = ppo.gae(reward_BR, jnp.zeros_like(reward_BR), replies.mask_BR, c.discount, 1.0)
        if whitens:
            of_act = ppo.whiten(advantage_BR, split.act_BR)
            if slates is not None:
                act_scale = jnp.sqrt(all_acts.variance(slates.acts) + 1e-8)
                slates = scaled(slates, act_scale)
                of_act = jnp.where(split.act_BR, ppo.less_mean(advantage_BR, split.act_BR) / act_scale, 0.0)
            advantage_BR = of_act + ppo.whiten(advantage_BR, split.word_BR)
        elif algorithm == "tilt":
            advantage_BR = jnp.zeros_like(advantage_BR)
        else:
            term_B = jnp.abs(scores.act_B) + jnp.abs(scores.total_B) + c.missing_end_penalty * ~split.ended_B
            advantage_BR = group_advantages(reward_BR, split, c.group, algorithm, term_B)
        if slates is not None and not beyond:
            advantage_BR = jnp.where(split.act_BR, 0.0, advantage_BR)
        per_token = (
            replies.tokens_BR, replies.mask_BR, split.act_BR, old.logp_BR, reference.logp_BR, value_BR, advantage_BR,
            return_BR,
        )  # fmt: skip

        def experience(number: int, rows: slice) -> Experience:
            contexts = replied[number].contexts
            by_context = (a[rows].reshape(len(contexts.prompt_CP), -1, R) for a in per_token)
            return Experience(contexts, *by_context)

        experiences = [experience(0, slice(B))]
        if talk is not None:
            experiences.append(turns.by_episode(experience(1, slice(B, None)), c.turns, C))

        def epoch(carry, epoch_key):
            order_C = jax.random.permutation(epoch_key, C)
            shuffled = jax.tree.map(lambda a: a[order_C], tuple(experiences))
            mixed = slates
            if slates is not None:
                order_C = jax.random.permutation(jax.random.fold_in(epoch_key, 1), len(slates.hidden_CD))
                mixed = jax.tree.map(lambda a: a[order_C], slates)
            return lax.scan(update, carry, in_parts((mixed, shuffled), c.minibatches, mesh))

        finite = jnp.isfinite(reward_BR).all() & jnp.isfinite(old.logp_BR).all()
        finite = finite & finite_B.all()
        if slates is not None:
            finite = finite & jnp.isfinite(slates.known.score_CA).all() & jnp.isfinite(slates.known.mean_C2).all()
        fixed = frozen, act_kl, word_kl
        learns = state.step >= c.value_warmup
        pace = state.extra["pace"]
        carry = (state.params, state.opt_state, state.step, state.halted | ~finite, fixed, learns, pace)
        (params, opt_state, _, halted, *_), updates = lax.scan(epoch, carry, jax.random.split(order_key, c.epochs))

        def moved(policy_params: Any) -> Moved:
            """Of replies of the first turn: first tokens exactly, the others by k3."""
            new = nnx.merge(graphs.actor, {**params, "policy": policy_params}, frozen)
            found, _, now = actor_pass(new, contexts, *experiences[0][1:3], c.temperature)
            before = replied[0].first.joint
            first_C = (jnp.exp(before) * (before - now.joint)).sum(1)
            k3_BR = ppo.approximate_kl(found.logp_BR, old.logp_BR[:B])
            later_BR = split.act_BR[:B].at[:, 0].set(False)
            return Moved(
                first_C.mean() + ppo.masked_sum(k3_BR, later_BR) / B, ppo.masked_sum(k3_BR, split.word_BR[:B]) / B
            )

        policy_params, way, share = shortened(moved, state.params["policy"], params["policy"], c.step_kl)
        params = {**params, "policy": policy_params}

        mask, count = replies.mask_BR, B if talk is None else alive_B.sum()

        def mean(a_B: jax.Array) -> jax.Array:
            """Over the replies."""
            return a_B.mean() if talk is None else ppo.masked_mean(a_B, alive_B)

        kl_act, kl_word = (ppo.masked_sum(k1_BR, part) / count for part in (split.act_BR, split.word_BR))
        extra = dict(state.extra)
        for name, measured, target in (("act_kl", kl_act, c.act_kl_target), ("word_kl", kl_word, c.word_kl_target)):
            if target > 0:
                extra[name] = ppo.adapt_kl_coefficient(extra[name], measured, target, count, c.kl_horizon)
        extra["pace"] = next_pace(pace, share)
        extra = select(~halted & learns, extra, state.extra)
        proposed_B = (split.items_BM >= 0).sum(-1)
        signals = {
            f"reward/{name}": ppo.masked_mean(column, jnp.isfinite(column))
            for name, column in zip(REWARDS, scores.signal_BS.T, strict=False)
        }
        if len(members(judges.reward)) > 1:
            signals["reward/spread"] = mean(scores.spread_B)
        metrics = signals | {
            "reward": mean(scores.total_B),
            "reward/act": mean(scores.act_B),
            "reward/std": scores.total_B.std(where=None if talk is None else alive_B),
            "kl": kl_act + kl_word,
            "kl/act": kl_act,
            "kl/decision": ppo.masked_sum(kind_BR, split.act_BR) / count,
            "kl/word": kl_word,
            "kl/k3": ppo.masked_sum(ppo.kl_k3(old.logp_BR, reference.logp_BR), mask) / count,
            "kl/max": jnp.where(mask, jnp.abs(k1_BR), 0.0).max(),
            "entropy/act": ppo.masked_mean(old.entropy_BR, split.act_BR),
            "entropy/word": ppo.masked_mean(old.entropy_BR, split.word_BR),
            "sampler_gap": jnp.where(mask, jnp.abs(old.logp_BR - replies.logp_BR), 0.0).max(),
            "reply_length": mean(mask.sum(-1)),
            "ended": mean(split.ended_B),
            "items_per_reply": mean(proposed_B),
            "recommends": mean(proposed_B > 0),
            "coefficient/act_kl": act_kl,
            "coefficient/word_kl": word_kl,
            "step_kl/act": way.act,
            "step_kl/word": way.word,
            "step_kl/share": share,
            "pace": pace,
            "rewards_finite": finite,
            "halted": halted,
            "ratio_error": updates.pop("ratio_error")[0, 0],
            "check/ratio": jnp.sqrt(updates.pop("square_log_ratio")[0, 0]),
            "noise": jax.random.key_data(sample_key).astype(jnp.uint32).sum(),
        }
        if has_critic(config):
            metrics["explained_variance"] = ppo.explained_variance(value_BR, return_BR, mask)
        if slates is not None and slates.place_CLK is not None:
            metrics["reward/list"] = rankwise.gain(slates.known.score_CA, slates.place_CLK).mean()
        metrics |= gaps(old.logp_BR, split, sampler=replies.logp_BR, reference=reference.logp_BR)
        metrics |= measures(replies.tokens_BR, split, actor.policy.items.content[...][:, -1])
        metrics |= {name: value.mean() for name, value in updates.items()}
        metrics |= {} if talk is None else turns.by_turn(played, c.turns, answers, actor.policy.layout.pad)
        return keep_layout(TrainState(state.step + 1, params, opt_state, halted, extra), mesh), metrics

    return Once("ppo iteration", iteration, mesh, donate=0)
