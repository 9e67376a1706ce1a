"""PPO's policy on validation contexts while it trains: reward of its replies, and hits of the humans' new items."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from crs_jax.models.policy import MASKED, add_at
from crs_jax.rl.reward import Normaliser, score
from crs_jax.rl.rollout import sample
from crs_jax.sharding import everywhere, on_mesh, shard_batch
from crs_jax.training.contexts import Contexts
from crs_jax.training.examples import fresh_instances
from crs_jax.training.judging import Graphs, Judges, judge
from crs_jax.training.ppo import first_of, policy_likelihood
from crs_jax.training.task import Task

MOST_TARGETS = 8


class Validation:
    """Seeded contexts of the validation split in which a recommender named something new.

    Attributes:
      count: how many; 0 where the split has none.
    """

    def __init__(self, task: Task, graphs: Graphs, judges: Judges, contexts_at: Any):
        """`contexts_at` makes host arrays of contexts (`training/ppo_stage.py`)."""
        c, found = task.config, fresh_instances(task, "validation")
        order = np.random.default_rng([c.seed, 29]).permutation(len(found))[: c.ppo.validation_contexts]
        chosen = [found[i] for i in sorted(order)]
        self.task, self.judges, self.count = task, judges, len(chosen)
        self._target_IY = np.full((len(chosen), MOST_TARGETS), -1, np.int32)
        for i, instance in enumerate(chosen):
            rows = instance.fresh[:MOST_TARGETS]
            self._target_IY[i, : len(rows)] = rows
        if self.count:
            self._contexts: Contexts = contexts_at(task, "validation", [(i.dialogue, i.turn) for i in chosen])
        p, clip, exact = c.ppo, c.reward.clip, c.reward.relevance == "exact"

        def check(params, judges: Judges, normaliser: Normaliser, contexts: Contexts, target_CY, key):
            first_CN = first_of(graphs.aligned, params, judges.frozen, contexts, p.temperature)[:, :-1]
            first_CN = add_at(first_CN, contexts.named_CX, jnp.full(contexts.named_CX.shape, MASKED))
            target_CY1 = jnp.take_along_axis(first_CN, jnp.maximum(target_CY, 0), 1)[..., None]
            rank_CY = lax.map(lambda x: (x[0] >= x[1]).sum(-1), (first_CN, target_CY1))
            policy = nnx.merge(graphs.aligned, params, judges.frozen)
            replies = sample(
                policy, contexts.prompt_CP, contexts.mask_CP, key, group=1, reply_tokens=c.data.reply_tokens,
                evidence=contexts.evidence, temperature=p.temperature, block=p.decode_block,
            )  # fmt: skip
            say_BS, end_BS, relevance_B, _ = judge(graphs, judges, contexts, replies, exact)
            total_B = score(say_BS, end_BS, relevance_B, normaliser, judges.weight_S, clip).total_B
            both = [
                policy_likelihood(graph, own, judges.frozen, contexts, replies, p.temperature).logp_BR
                for graph, own in ((graphs.aligned, params), (graphs.policy, judges.reference))
            ]
            return rank_CY, total_B, (both[0] - both[1]).sum(-1)

        self._check = jax.jit(on_mesh(check, task.mesh), out_shardings=everywhere(task.mesh))

    def __call__(self, params: Any, normaliser: Normaliser) -> dict[str, float]:
        """`validation/hr@10` over the new items, `validation/reward` of a sampled reply, its `validation/kl`; the same
        random numbers each time. Empty where there are no contexts.
        """
        if not self.count:
            return {}
        size, key, found = self.task.config.evaluation.batch, jax.random.key(self.task.config.seed + 31), []
        for number, start in enumerate(range(0, self.count, size)):
            index = np.minimum(np.arange(start, start + size), self.count - 1)
            inputs = jax.tree.map(lambda a, index=index: a[index], (self._contexts, self._target_IY))
            inputs = shard_batch(inputs, self.task.mesh)
            out = self._check(params, self.judges, normaliser, *inputs, jax.random.fold_in(key, number))
            found.append([np.asarray(a)[: self.count - start] for a in out])
        rank_IY, total_I, kl_I = (np.concatenate(parts) for parts in zip(*found, strict=True))
        hit = rank_IY[self._target_IY >= 0] <= 10
        return {
            "validation/hr@10": float(hit.mean()),
            "validation/reward": float(total_I.mean()),
            "validation/kl": float(kl_I.mean()),
        }
