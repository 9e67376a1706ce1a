"""The PPO stage: one jitted iteration of rollout, scores, advantages and clipped updates, over the mesh.

Everything that learns or judges is an argument: the state (donated), the reference, the reward model and the batch of
contexts. Rewards are paid where `rl/reward.py` says, less the k1 KL penalty of each token; acts and words have their
own KL coefficients, entropies and whitening, since a reply has one or two act tokens and dozens of words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.heads import REWARDS, SIGNALS
from crs_jax.models.likelihood import first_logp
from crs_jax.models.query import Wish
from crs_jax.rl import all_acts, ppo, rankwise
from crs_jax.rl.all_acts import Acts
from crs_jax.rl.groups import group_advantages
from crs_jax.rl.reward import Normaliser, Scores, mean_of, members, score, with_relevance
from crs_jax.rl.rollout import Replies, sample
from crs_jax.rl.scoring import Parts, TokenLikelihood, parts, reply_likelihood, tree_hidden
from crs_jax.sharding import in_parts, on_mesh
from crs_jax.training.contexts import Contexts, after_rec
from crs_jax.training.health import measures
from crs_jax.training.judging import Graphs, Judges, act_scores, judge
from crs_jax.training.state import TrainState, accumulated_gradients, apply_gradients, keep_layout, select


class Experience(NamedTuple):
    """What the updates of one iteration train on; leading axis C contexts, then G replies.

    `acts` are known first tokens beside the sampled ones (`rl/all_acts.py`); unused where none are summed over.
    `place_CLK` are lists of them (`rl/rankwise.py`), where lists are proposed.
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


def actor_pass(
    actor: ActorCritic, contexts: Contexts, tokens_CGR: jax.Array, reply_mask_CGR: jax.Array, temperature: float
) -> tuple[TokenLikelihood, jax.Array, jax.Array]:
    """Likelihoods and values of reply tokens, `[B, R]` each, B = C * G, and `first_logp` `[C, N + 1]`."""
    C, G, R = tokens_CGR.shape
    args = (contexts.prompt_CP, contexts.mask_CP, tokens_CGR, reply_mask_CGR)
    items_NW = actor.policy.item_table()
    hidden = tree_hidden(actor.policy, items_NW, *args).before.reshape(C * G, R, -1)
    flat = tokens_CGR.reshape(C * G, R), reply_mask_CGR.reshape(C * G, R)
    wish = actor.policy.wish(contexts.evidence)
    first_CN = first_logp(actor.policy, items_NW, hidden[::G, 0], wish, temperature)
    wish = repeated(wish, G)
    act_BR = parts(*flat, actor.policy.layout).act_BR
    seen = jnp.where(act_BR[..., None], hidden + wish.vector[:, None].astype(hidden.dtype), hidden)
    if actor.critic is not None:
        seen = tree_hidden(actor.critic, actor.critic.item_table(), *args).before.reshape(C * G, R, -1)
    return reply_likelihood(actor.policy, items_NW, hidden, *flat, temperature, wish), actor.values(seen), first_CN


def repeated(wish: Wish, group: int) -> Wish:
    """Of contexts, for each of their replies."""
    return jax.tree.map(lambda a: jnp.repeat(a, group, axis=0), wish)


def policy_likelihood(
    graph: Any, params: Any, frozen: Any, contexts: Contexts, replies: Replies, temperature: float
) -> TokenLikelihood:
    """Of replies under a policy, `[B, R]`."""
    C, (B, R) = contexts.prompt_CP.shape[0], replies.tokens_BR.shape
    policy = nnx.merge(graph, params, frozen)
    items_NW = policy.item_table()
    tokens, mask = (a.reshape(C, B // C, R) for a in (replies.tokens_BR, replies.mask_BR))
    hidden = tree_hidden(policy, items_NW, contexts.prompt_CP, contexts.mask_CP, tokens, mask)
    before_BRD = hidden.before.reshape(B, R, -1)
    wish = repeated(policy.wish(contexts.evidence), B // C)
    return reply_likelihood(policy, items_NW, before_BRD, replies.tokens_BR, replies.mask_BR, temperature, wish)


def first_of(graph: Any, params: Any, frozen: Any, contexts: Contexts, temperature: float) -> jax.Array:
    """Log-probabilities of first tokens `[C, N + 1]` under a policy (`first_logp`)."""
    policy = nnx.merge(graph, params, frozen)
    hidden_CD, items_NW, wish = after_rec(policy, contexts)
    return first_logp(policy, items_NW, hidden_CD, wish, temperature)


def only_value(learns: jax.Array, new: Any, old: Any) -> Any:
    """`new`, but the policy's part of it `old` while the policy does not learn."""
    return {**new, "policy": select(learns, new["policy"], old["policy"])}


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


def token_rewards(
    scores: Scores, split: Parts, kl_BR: jax.Array, act_kl: jax.Array, word_kl: jax.Array, penalty: float
) -> jax.Array:
    """Rewards `[B, R]`: scores where they fall, less the KL penalty of each token and that of a missing end."""
    word_B = scores.total_B - scores.act_B - penalty * ~split.ended_B
    placed_BR = ppo.place_rewards(scores.act_B, word_B, split.say_BR, split.last_BR)
    return placed_BR - kl_BR * (act_kl * split.act_BR + word_kl * split.word_BR)


def make_iteration(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh):
    """Jitted (state, judges, normaliser, contexts, key) -> (state, metrics): one PPO iteration.

    Args:
      graphs: graph definitions.
      optimizer: of the actor-critic's parameters.
      config: the whole config; read when tracing.
      mesh: contexts are cut along its data and fsdp axes.

    Metrics are masked means over the real tokens of the global batch. With the key of the run, iteration i draws from
    `fold_in(key, i)`.
    """
    c, R, algorithm = config.ppo, config.data.reply_tokens, config.algorithm
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
            policy_loss += c.group * known_C.sum() / of_act
        value_loss = ppo.masked_mean(critic, real, of_all)
        bonus = c.act_entropy * ppo.masked_mean(entropy, act, of_act)
        bonus += c.word_entropy * ppo.masked_mean(entropy, word, of_word)
        loss = policy_loss - bonus
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
        }

    def update(carry, mini: Experience):
        params, opt_state, halted, stopped, fixed, learns = carry
        of_act = mini.act_CGR.sum()
        counts = of_act, mini.reply_mask_CGR.sum() - of_act

        def loss(params, micro: Experience, _):
            return loss_of(params, fixed, micro, *counts)

        each, grads = accumulated_gradients(loss, params, in_parts(mini, c.accumulate, mesh))
        metrics = {name: value.max() if name == "ratio_error" else value.sum() for name, value in each.items()}
        if c.value_warmup:
            grads = only_value(learns, grads, jax.tree.map(jnp.zeros_like, grads))
        if c.kl_stop > 0:
            stopped = stopped | (metrics["approx_kl"] > c.kl_stop)
        go = ~halted & ~stopped
        before = params
        params, opt_state, norm, made = apply_gradients(
            optimizer, grads, params, opt_state, jnp.isfinite(metrics["loss"]) & go
        )
        if c.value_warmup:  # where the gradient is 0, weight decay still moves
            params = only_value(learns, params, before)
        halted = halted | (go & ~made)
        return (params, opt_state, halted, stopped, fixed, learns), {**metrics, "grad_norm": norm, "updated": made}

    def iteration(state: TrainState, judges: Judges, normaliser: Normaliser, contexts: Contexts, key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        sample_key, order_key = jax.random.split(key)
        C, B = c.contexts, c.contexts * c.group
        frozen = {"policy": judges.frozen} | ({"critic": judges.frozen} if config.model.value == "separate" else {})
        actor = nnx.merge(graphs.actor, state.params, frozen)
        replies = sample(
            actor.policy, contexts.prompt_CP, contexts.mask_CP, sample_key, group=c.group, reply_tokens=R,
            evidence=contexts.evidence, temperature=c.temperature, block=c.decode_block,
        )  # fmt: skip
        tokens_CGR, mask_CGR = (a.reshape(C, c.group, R) for a in (replies.tokens_BR, replies.mask_BR))
        old, value_BR, first_CN = actor_pass(actor, contexts, tokens_CGR, mask_CGR, c.temperature)
        reference = policy_likelihood(graphs.policy, judges.reference, judges.frozen, contexts, replies, c.temperature)
        exact = config.reward.relevance == "exact"
        say_JBS, end_JBS, relevance_JB, split = judge(graphs, judges, contexts, replies, exact)
        scores = score(say_JBS, end_JBS, relevance_JB, normaliser, judges.weight_S, config.reward.clip, judges.spread)
        shuffle_key = jax.random.fold_in(sample_key, 1)
        if c.shuffled_rewards:
            scores = jax.tree.map(lambda a: jax.random.permutation(shuffle_key, a), scores)
        k1_BR = ppo.kl_k1(old.logp_BR, reference.logp_BR)
        act_kl, word_kl = state.extra["act_kl"], state.extra["word_kl"]
        learned, paid_kl = scores, (act_kl, word_kl)
        if has_critic and c.group_baseline:
            act_B, total_B = (ppo.leave_one_out(a.reshape(C, c.group)).reshape(B) for a in scores[:2])
            learned = scores._replace(act_B=act_B, total_B=total_B)
        elif algorithm in ("grpo", "raft"):
            paid_kl = jnp.float32(0), jnp.float32(0)
        reward_BR = token_rewards(learned, split, k1_BR, *paid_kl, c.missing_end_penalty)
        advantage_BR, return_BR = ppo.gae(reward_BR, value_BR, replies.mask_BR, c.discount, c.gae_lambda)
        scale = jnp.float32(1)
        if has_critic:
            scale = jnp.sqrt(ppo.masked_variance(advantage_BR, split.act_BR) + 1e-8)
            advantage_BR = ppo.whiten(advantage_BR, split.act_BR) + ppo.whiten(advantage_BR, split.word_BR)
        else:
            advantage_BR = group_advantages(reward_BR, split, c.group, algorithm)
        row_CA, old_CA = all_acts.likeliest(first_CN, min(c.all_acts, first_CN.shape[1] - 1))
        acts, place_CLK = Acts(row_CA, old_CA, jnp.zeros(old_CA.shape)), None
        if c.all_acts:
            reference_CN = first_of(graphs.policy, judges.reference, judges.frozen, contexts, c.temperature)
            score_CA = act_scores(
                graphs, judges, normaliser, contexts, row_CA, actor.policy.layout, exact, config.reward.clip
            )
            if c.shuffled_rewards:
                score_CA = jax.random.permutation(shuffle_key, score_CA.reshape(-1)).reshape(score_CA.shape)
            reference_CA = jnp.take_along_axis(reference_CN, row_CA, 1)
            acts = Acts(row_CA, old_CA, all_acts.known_advantages(score_CA, old_CA, reference_CA, act_kl) / scale)
            row_B = jnp.where(split.items_BM[:, 0] < 0, actor.policy.layout.num_items, split.items_BM[:, 0])
            known_B = all_acts.of_sampled(acts, row_B.reshape(C, c.group)).reshape(B)
            advantage_BR = advantage_BR.at[:, 0].add(-known_B)
        if algorithm == "rankwise":
            place_CLK = rankwise.draw(jax.random.fold_in(sample_key, 2), old_CA, c.lists, c.list_items)

        def by_context(a_BR):
            return a_BR.reshape(C, c.group, R)

        experience = Experience(
            contexts, tokens_CGR, mask_CGR, by_context(split.act_BR), by_context(old.logp_BR),
            by_context(reference.logp_BR), by_context(value_BR), by_context(advantage_BR), by_context(return_BR),
            acts, place_CLK,
        )  # fmt: skip

        def epoch(carry, epoch_key):
            order_C = jax.random.permutation(epoch_key, C)
            shuffled = jax.tree.map(lambda a: a[order_C], experience)
            return lax.scan(update, carry, in_parts(shuffled, c.minibatches, mesh))

        finite = jnp.isfinite(reward_BR).all() & jnp.isfinite(old.logp_BR).all()
        finite = finite & ~jnp.isinf(end_JBS).any()
        for read_JBS in (say_JBS, end_JBS):
            finite = finite & jnp.isfinite(read_JBS[..., : len(SIGNALS)]).all()
        fixed = frozen, act_kl, word_kl
        learns = state.step >= c.value_warmup
        carry = (state.params, state.opt_state, state.halted | ~finite, jnp.asarray(False), fixed, learns)
        (params, opt_state, halted, *_), updates = lax.scan(epoch, carry, jax.random.split(order_key, c.epochs))

        mask = replies.mask_BR
        kl_act, kl_word = (ppo.masked_sum(k1_BR, part) / B for part in (split.act_BR, split.word_BR))
        extra = dict(state.extra)
        for name, measured, target in (("act_kl", kl_act, c.act_kl_target), ("word_kl", kl_word, c.word_kl_target)):
            if target > 0:
                extra[name] = ppo.adapt_kl_coefficient(extra[name], measured, target, B, c.kl_horizon)
        extra = select(~halted & learns, extra, state.extra)
        proposed_B = (split.items_BM >= 0).sum(-1)
        signals = {
            f"reward/{name}": ppo.masked_mean(column, jnp.isfinite(column))
            for name, column in zip(REWARDS, scores.signal_BS.T, strict=False)
        }
        if len(members(judges.reward)) > 1:
            signals["reward/spread"] = scores.spread_B.mean()
        metrics = signals | {
            "reward": scores.total_B.mean(),
            "reward/act": scores.act_B.mean(),
            "reward/std": scores.total_B.std(),
            "kl": kl_act + kl_word,
            "kl/act": kl_act,
            "kl/word": kl_word,
            "kl/k3": ppo.masked_sum(ppo.kl_k3(old.logp_BR, reference.logp_BR), mask) / B,
            "kl/max": jnp.where(mask, jnp.abs(k1_BR), 0.0).max(),
            "entropy/act": ppo.masked_mean(old.entropy_BR, split.act_BR),
            "entropy/word": ppo.masked_mean(old.entropy_BR, split.word_BR),
            "sampler_gap": jnp.where(mask, jnp.abs(old.logp_BR - replies.logp_BR), 0.0).max(),
            "explained_variance": ppo.explained_variance(value_BR, return_BR, mask),
            "reply_length": mask.sum(-1).mean(),
            "ended": split.ended_B.mean(),
            "items_per_reply": proposed_B.mean(),
            "recommends": (proposed_B > 0).mean(),
            "coefficient/act_kl": act_kl,
            "coefficient/word_kl": word_kl,
            "rewards_finite": finite,
            "halted": halted,
            "ratio_error": updates.pop("ratio_error")[0, 0],
            "noise": jax.random.key_data(sample_key).astype(jnp.uint32).sum(),
        }
        if place_CLK is not None:
            metrics["reward/list"] = rankwise.gain(score_CA, place_CLK).mean()
        metrics |= measures(replies.tokens_BR, split, actor.policy.items.content[...][:, -1])
        metrics |= {name: value.mean() for name, value in updates.items()}
        return keep_layout(TrainState(state.step + 1, params, opt_state, halted, extra), mesh), metrics

    return jax.jit(on_mesh(iteration, mesh), donate_argnums=0)
