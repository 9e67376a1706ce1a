"""The PPO stage: one jitted iteration of rollout, scores, advantages and clipped updates, over the mesh.

Everything that learns or judges is an argument: the state (donated), the reference, the reward model and the batch of
contexts. Rewards are paid where `rl/reward.py` says, less the k1 KL penalty of each token; acts and words have their
own KL coefficients, entropies and whitening, since a reply has one or two act tokens and dozens of words. With
`config.ppo.turns` above 1 an episode goes on after the first reply (`training/turns.py`): later replies are rows with
contexts of their own, and all rows of a context's episodes stay in one minibatch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.compilation import Once
from crs_jax.models.heads import REWARDS, SIGNALS
from crs_jax.rl import all_acts, ppo, rankwise
from crs_jax.rl.all_acts import Acts
from crs_jax.rl.groups import group_advantages
from crs_jax.rl.reward import Normaliser, Scores, mean_of, members, score, with_relevance
from crs_jax.rl.rollout import sample
from crs_jax.rl.scoring import Parts
from crs_jax.sharding import in_parts, on_mesh
from crs_jax.training import turns
from crs_jax.training.checks import gaps
from crs_jax.training.contexts import Contexts
from crs_jax.training.health import measures
from crs_jax.training.judging import Graphs, Judges, act_scores, judge
from crs_jax.training.passes import actor_pass, policy_pass
from crs_jax.training.state import TrainState, accumulated_gradients, apply_gradients, keep_layout, select


class Experience(NamedTuple):
    """What the updates of one iteration train on; leading axis C contexts, then G replies.

    Of later turns leading axes are C, then rows with a context each, then one reply (`turns.by_episode`). `acts` are
    known first tokens beside the sampled ones (`rl/all_acts.py`), unused where none are summed over; `place_CLK` are
    lists of them (`rl/rankwise.py`), where lists are proposed.
    """

    contexts: Contexts
    tokens_CGR: jax.Array
    reply_mask_CGR: jax.Array
    act_CGR: jax.Array
    logp_CGR: jax.Array
    reference_CGR: jax.Array
    value_CGR: jax.Array
    advantage_CGR: jax.Array
    return_CGR: jax.Array
    acts: Acts
    place_CLK: jax.Array | None


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


def only_value(learns: jax.Array, new: Any, old: Any) -> Any:
    """`new`, but the policy's part of it `old` while the policy does not learn."""
    return {**new, "policy": select(learns, new["policy"], old["policy"])}


def token_rewards(
    scores: Scores, split: Parts, kl_BR: jax.Array, act_kl: jax.Array, word_kl: jax.Array, penalty: float
) -> jax.Array:
    """Rewards `[B, R]`: scores where they fall, less the KL penalty of each token and that of a missing end."""
    word_B = scores.total_B - scores.act_B - penalty * ~split.ended_B
    placed_BR = ppo.place_rewards(scores.act_B, word_B, split.say_BR, split.last_BR)
    return placed_BR - kl_BR * (act_kl * split.act_BR + word_kl * split.word_BR)


def make_update(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh):
    """The step of `lax.scan` over minibatches: (carry, minibatch) -> (carry, metrics), one clipped update.

    The carry: parameters, optimizer state, the iteration's number, of which the learning rate is a function, `halted`,
    `stopped` (by `config.ppo.kl_stop`), frozen arrays and KL coefficients, and whether the policy learns.
    """
    c, algorithm = config.ppo, config.algorithm
    has_critic = algorithm in ("ppo", "rankwise")

    def loss_of(params, fixed, mini: Experience, of_act: jax.Array, of_word: jax.Array):
        """Sums over a micro-batch, divided by the tokens `of_act`, `of_word` of the whole minibatch."""
        frozen, act_kl, word_kl = fixed
        actor = nnx.merge(graphs.actor, params, frozen)
        shape = mini.tokens_CGR.shape
        likelihood, value_BR, first_CN = actor_pass(
            actor, mini.contexts, mini.tokens_CGR, mini.reply_mask_CGR, c.temperature
        )
        logp, entropy, value = (a.reshape(shape) for a in (likelihood.logp_BR, likelihood.entropy_BR, value_BR))
        act, word = mini.act_CGR, mini.reply_mask_CGR & ~mini.act_CGR
        surrogate, clipped = ppo.policy_loss(logp, mini.logp_CGR, mini.advantage_CGR, c.clip)
        critic, _ = ppo.value_loss(value, mini.value_CGR, mini.return_CGR, c.value_clip)
        real, of_all = mini.reply_mask_CGR, of_act + of_word
        policy_loss = ppo.masked_mean(surrogate, act, of_act) + ppo.masked_mean(surrogate, word, of_word)
        if c.all_acts:
            logp_CA = jnp.take_along_axis(first_CN, mini.acts.row_CA, 1)
            known_C = all_acts.surrogate(logp_CA, mini.acts, c.clip)
            if mini.place_CLK is not None:
                known_C += rankwise.surrogate(logp_CA, mini.acts, mini.place_CLK, c.clip)
            policy_loss += shape[1] * known_C.sum() / of_act
        value_loss = ppo.masked_mean(critic, real, of_all)
        loss = policy_loss
        for coefficient, part, count in ((c.act_entropy, act, of_act), (c.word_entropy, word, of_word)):
            if coefficient:
                loss = loss - coefficient * ppo.masked_mean(entropy, part, count)
        if has_critic:
            loss = loss + c.value_coef * value_loss
        if algorithm == "grpo":  # its KL penalty is in the loss, not in the reward
            k3 = ppo.kl_k3(logp, mini.reference_CGR)
            loss = loss + act_kl * ppo.masked_mean(k3, act, of_act) + word_kl * ppo.masked_mean(k3, word, of_word)
        return loss, {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clip_fraction": ppo.masked_mean(clipped.astype(jnp.float32), real, of_all),
            "approx_kl": ppo.masked_mean(ppo.approximate_kl(logp, mini.logp_CGR), real, of_all),
            "ratio_error": jnp.where(real, jnp.abs(jnp.exp(logp - mini.logp_CGR) - 1.0), 0.0).max(),
            "square_log_ratio": ppo.masked_mean(jnp.square(logp - mini.logp_CGR), real, of_all),
        }

    def update(carry, minis: tuple[Experience, ...]):
        params, opt_state, number, halted, stopped, fixed, learns = carry
        of_act = sum(mini.act_CGR.sum() for mini in minis)
        counts = of_act, sum(mini.reply_mask_CGR.sum() for mini in minis) - of_act

        def loss(params, micro: tuple[Experience, ...], _):
            return turns.summed(loss_of, params, fixed, micro, *counts)

        each, grads = accumulated_gradients(loss, params, in_parts(minis, c.accumulate, mesh))
        metrics = {name: value.max() if name == "ratio_error" else value.sum() for name, value in each.items()}
        if c.value_warmup:
            grads = only_value(learns, grads, jax.tree.map(jnp.zeros_like, grads))
        if c.kl_stop > 0:
            stopped = stopped | (metrics["approx_kl"] > c.kl_stop)
        go = ~halted & ~stopped
        before = params
        params, opt_state, norm, made = apply_gradients(
            optimizer, grads, params, opt_state, jnp.isfinite(metrics["loss"]) & go, number
        )
        if c.value_warmup:  # where the gradient is 0, weight decay still moves
            params = only_value(learns, params, before)
        halted = halted | (go & ~made)
        carry = (params, opt_state, number, halted, stopped, fixed, learns)
        return carry, {**metrics, "grad_norm": norm, "updated": made}

    return update


def make_iteration(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh, talk: turns.Talk | None = None):
    """Jitted (state, judges, normaliser, contexts, key) -> (state, metrics): one PPO iteration.

    Args:
      graphs: graph definitions.
      optimizer: of the actor-critic's parameters.
      config: the whole config; read when tracing.
      mesh: contexts are cut along its data and fsdp axes.
      talk: what goes on after a reply, where there are several turns; the function then takes, besides, the parameters
        of the seeker and the (dialogue, turn) `[C, 2]` of the contexts.

    Metrics are masked means over the real tokens of the global batch. With the key of the run, iteration i draws from
    `fold_in(key, i)`.
    """
    c, R, algorithm = config.ppo, config.data.reply_tokens, config.algorithm
    has_critic = algorithm in ("ppo", "rankwise")
    update = make_update(graphs, optimizer, config, mesh)

    def iteration(
        state: TrainState, judges: Judges, normaliser: Normaliser, contexts: Contexts, key: jax.Array, *seeking: Any
    ):
        key = jax.random.fold_in(key, state.step)
        sample_key, order_key = jax.random.split(key)
        C, B = c.contexts, c.contexts * c.group
        frozen = {"policy": judges.frozen} | ({"critic": judges.frozen} if config.model.value == "separate" else {})
        actor = nnx.merge(graphs.actor, state.params, frozen)
        act_kl, word_kl = state.extra["act_kl"], state.extra["word_kl"]
        paid_kl = act_kl, word_kl
        if algorithm in ("grpo", "raft"):
            paid_kl = jnp.float32(0), jnp.float32(0)
        shuffle_key, exact = jax.random.fold_in(sample_key, 1), config.reward.relevance == "exact"

        of_sft = graphs.policy, judges.reference, judges.frozen

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
            old, value_BR, first_CN = actor_pass(actor, contexts, tokens_CGR, mask_CGR, c.temperature)
            reference, expected_CN = policy_pass(*of_sft, contexts, replies, c.temperature)
            say_JBS, end_JBS, relevance_JB, split = judge(graphs, judges, contexts, replies, exact)
            given = normaliser, judges.weight_S, config.reward.clip, judges.spread
            scores = score(say_JBS, end_JBS, relevance_JB, *given)
            if c.shuffled_rewards:
                scores = turns.shuffled(scores, jax.random.fold_in(key, 1), alive_B)
            k1_BR = ppo.kl_k1(old.logp_BR, reference.logp_BR)
            learned = scores
            if has_critic and c.group_baseline:
                act_B, total_B = (ppo.leave_one_out(a.reshape(-1, group)).reshape(B) for a in scores[:2])
                learned = scores._replace(act_B=act_B, total_B=total_B)
            reward_BR = token_rewards(learned, split, k1_BR, *paid_kl, c.missing_end_penalty)
            alive_B = jnp.ones(B, bool) if alive_B is None else alive_B
            read = [jnp.isfinite(read_JBS[..., : len(SIGNALS)]).all((0, 2)) for read_JBS in (say_JBS, end_JBS)]
            finite_B = read[0] & read[1] & ~jnp.isinf(end_JBS).any((0, 2))
            judged = finite_B, split, scores, k1_BR, reward_BR, alive_B
            return turns.Replied(
                contexts, first_CN, expected_CN, turns.Played(replies, old, reference, value_BR, *judged)
            )

        def known_acts(turn: turns.Replied, scale: jax.Array) -> tuple[Acts, jax.Array]:
            """First tokens summed over and their scores; both nothing but 0 where none are summed or nobody talks."""
            row_CA, old_CA = all_acts.likeliest(turn.first_CN, min(c.all_acts, turn.first_CN.shape[1] - 1))
            if not c.all_acts:
                return Acts(row_CA, old_CA, jnp.zeros(old_CA.shape)), jnp.zeros(old_CA.shape)
            score_CA = act_scores(
                graphs, judges, normaliser, turn.contexts, row_CA, actor.policy.layout, exact, config.reward.clip
            )
            if c.shuffled_rewards:
                score_CA = jax.random.permutation(shuffle_key, score_CA.reshape(-1)).reshape(score_CA.shape)
            reference_CA = jnp.take_along_axis(turn.expected_CN, row_CA, 1)
            known_CA = all_acts.known_advantages(score_CA, old_CA, reference_CA, act_kl) / scale
            return Acts(row_CA, old_CA, turns.talking(turn, known_CA)), score_CA

        replied = [reply(contexts, sample_key)]
        if talk is not None:
            later_key = jax.random.fold_in(sample_key, 2 * R)
            later, answers = turns.go_on(talk, reply, seeking, replied[0], c.turns, later_key, judges.frozen)
            replied.append(later)
        played = turns.joined(replied)
        replies, old, reference, value_BR, finite_B, split, scores, k1_BR, reward_BR, alive_B = played
        advantage_BR, return_BR = turns.advantages(played, c)
        scale = jnp.float32(1)
        if has_critic:
            scale = jnp.sqrt(ppo.masked_variance(advantage_BR, split.act_BR) + 1e-8)
            advantage_BR = ppo.whiten(advantage_BR, split.act_BR) + ppo.whiten(advantage_BR, split.word_BR)
        else:
            term_B = jnp.abs(scores.act_B) + jnp.abs(scores.total_B) + c.missing_end_penalty * ~split.ended_B
            advantage_BR = group_advantages(reward_BR, split, c.group, algorithm, term_B)
        known = [known_acts(turn, scale) for turn in replied]
        if c.all_acts:
            row_B = jnp.where(split.items_BM[:, 0] < 0, actor.policy.layout.num_items, split.items_BM[:, 0])
            each = zip(known, (row_B[:B], row_B[B:]), strict=False)
            known_B = [all_acts.of_sampled(a, rows.reshape(len(a.row_CA), -1)).reshape(-1) for (a, _), rows in each]
            advantage_BR = advantage_BR.at[:, 0].add(-jnp.concatenate(known_B))
        place_CLK = None
        if algorithm == "rankwise":  # which has one turn
            place_CLK = rankwise.draw(jax.random.fold_in(sample_key, 2), known[0][0].logp_CA, c.lists, c.list_items)
        per_token = (
            replies.tokens_BR, replies.mask_BR, split.act_BR, old.logp_BR, reference.logp_BR, value_BR, advantage_BR,
            return_BR,
        )  # fmt: skip

        def experience(number: int, rows: slice) -> Experience:
            contexts = replied[number].contexts
            by_context = (a[rows].reshape(len(contexts.prompt_CP), -1, R) for a in per_token)
            fields: Any = (contexts, *by_context, known[number][0], place_CLK)
            return Experience(*fields)

        experiences = [experience(0, slice(B))]
        if talk is not None:
            experiences.append(turns.by_episode(experience(1, slice(B, None)), c.turns, C))

        def epoch(carry, epoch_key):
            order_C = jax.random.permutation(epoch_key, C)
            shuffled = jax.tree.map(lambda a: a[order_C], tuple(experiences))
            return lax.scan(update, carry, in_parts(shuffled, c.minibatches, mesh))

        finite = jnp.isfinite(reward_BR).all() & jnp.isfinite(old.logp_BR).all()
        finite = finite & finite_B.all()
        fixed = frozen, act_kl, word_kl
        learns = state.step >= c.value_warmup
        carry = (state.params, state.opt_state, state.step, state.halted | ~finite, jnp.asarray(False), fixed, learns)
        (params, opt_state, _, halted, *_), updates = lax.scan(epoch, carry, jax.random.split(order_key, c.epochs))

        mask, count = replies.mask_BR, B if talk is None else alive_B.sum()

        def mean(a_B: jax.Array) -> jax.Array:
            """Over the replies."""
            return a_B.mean() if talk is None else ppo.masked_mean(a_B, alive_B)

        kl_act, kl_word = (ppo.masked_sum(k1_BR, part) / count for part in (split.act_BR, split.word_BR))
        extra = dict(state.extra)
        for name, measured, target in (("act_kl", kl_act, c.act_kl_target), ("word_kl", kl_word, c.word_kl_target)):
            if target > 0:
                extra[name] = ppo.adapt_kl_coefficient(extra[name], measured, target, count, c.kl_horizon)
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
            "kl/word": kl_word,
            "kl/k3": ppo.masked_sum(ppo.kl_k3(old.logp_BR, reference.logp_BR), mask) / count,
            "kl/max": jnp.where(mask, jnp.abs(k1_BR), 0.0).max(),
            "entropy/act": ppo.masked_mean(old.entropy_BR, split.act_BR),
            "entropy/word": ppo.masked_mean(old.entropy_BR, split.word_BR),
            "sampler_gap": jnp.where(mask, jnp.abs(old.logp_BR - replies.logp_BR), 0.0).max(),
            "explained_variance": ppo.explained_variance(value_BR, return_BR, mask),
            "reply_length": mean(mask.sum(-1)),
            "ended": mean(split.ended_B),
            "items_per_reply": mean(proposed_B),
            "recommends": mean(proposed_B > 0),
            "coefficient/act_kl": act_kl,
            "coefficient/word_kl": word_kl,
            "rewards_finite": finite,
            "halted": halted,
            "ratio_error": updates.pop("ratio_error")[0, 0],
            "check/ratio": jnp.sqrt(updates.pop("square_log_ratio")[0, 0]),
            "noise": jax.random.key_data(sample_key).astype(jnp.uint32).sum(),
        }
        if place_CLK is not None:
            metrics["reward/list"] = rankwise.gain(known[0][1], place_CLK).mean()
        metrics |= gaps(old.logp_BR, split, sampler=replies.logp_BR, reference=reference.logp_BR)
        metrics |= measures(replies.tokens_BR, split, actor.policy.items.content[...][:, -1])
        metrics |= {name: value.mean() for name, value in updates.items()}
        metrics |= {} if talk is None else turns.by_turn(played, c.turns, answers, actor.policy.layout.pad)
        return keep_layout(TrainState(state.step + 1, params, opt_state, halted, extra), mesh), metrics

    return Once("ppo iteration", iteration, mesh, donate=0)
