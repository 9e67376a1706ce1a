"""PPO's policy on validation contexts while it trains: its reward, hits of the humans' new items, and its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from crs_jax.evaluation.optimum import first_item, item_rewards, way_of
from crs_jax.evaluation.policies import run_batched
from crs_jax.evaluation.text import bleu_4, repetition
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.task import Task
from crs_jax.models.policy import MASKED, add_at
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.forward import first_of, policy_likelihood
from crs_jax.rl.frozen_models import FrozenModels, Graphs, Model, predict_signals
from crs_jax.rl.reward import Normaliser, score
from crs_jax.rl.sampling import keys_of, sample
from crs_jax.runtime.sharding import everywhere, on_mesh
from crs_jax.signals.registry import column
from crs_jax.training.examples import fresh_instances

MOST_TARGETS = 8


class Validated(NamedTuple):
    """A sampled reply to each context: its tokens, reward, KL to the SFT policy in nats, and standardised signals."""

    token_IR: Any
    reward_I: Any
    kl_I: Any
    signal_IS: Any


class Validation:
    """Seeded contexts of the validation split in which a recommender named something new.

    Attributes:
      count: how many; 0 where the split has none.
      where: their (dialogue, turn).
      last: the sampled replies of the last check.
    """

    def __init__(self, task: Task, graphs: Graphs, frozen_models: FrozenModels):
        c, found = task.config, fresh_instances(task, "validation")
        order = np.random.default_rng([c.seed, 29]).permutation(len(found))[: c.ppo.validation_contexts]
        chosen = [found[i] for i in sorted(order)]
        self.task, self.frozen_models, self.count = task, frozen_models, len(chosen)
        self._target_IY = np.full((len(chosen), MOST_TARGETS), -1, np.int32)
        for i, instance in enumerate(chosen):
            rows = instance.fresh[:MOST_TARGETS]
            self._target_IY[i, : len(rows)] = rows
        self.where = where = [(i.dialogue, i.turn) for i in chosen]
        self.last: Validated | None = None
        self._key = jax.random.key(c.seed + 31)
        self._sft: Model = (graphs.policy, frozen_models.reference, frozen_models.frozen)
        self._graphs, self._reference_IN = graphs, np.zeros(0)
        if self.count:
            self._contexts: Contexts = contexts_at(task, "validation", where)
        names, dialogues = task.corpus.catalogue.names, task.corpus.validation
        self._references = [dialogues[d].turns[t].render(names) for d, t in where]
        p, clip, exact = c.ppo, c.reward.clip, c.reward.relevance == "exact"

        def draw(params, frozen_models: FrozenModels, contexts: Contexts, key, **how):
            return sample(
                nnx.merge(graphs.aligned, params, frozen_models.frozen), contexts.prompt_CP, contexts.mask_CP, key,
                group=1, reply_tokens=c.data.reply_tokens, features=contexts.features,
                block=p.decode_block, **how,
            )  # fmt: skip

        def check(
            params, frozen_models: FrozenModels, normaliser: Normaliser, contexts: Contexts, target_CY, number_C, key
        ):
            first_CN = first_of(graphs.aligned, params, frozen_models.frozen, contexts, p.temperature).item_CN
            first_CN = add_at(first_CN, contexts.features.named, jnp.full(contexts.features.named.shape, MASKED))
            target_CY1 = jnp.take_along_axis(first_CN, jnp.maximum(target_CY, 0), 1)[..., None]
            rank_CY = lax.map(lambda x: (x[0] >= x[1]).sum(-1), (first_CN, target_CY1))
            replies = draw(params, frozen_models, contexts, keys_of(key, number_C), temperature=p.temperature)
            say_JBS, end_JBS, by_formula, _ = predict_signals(graphs, frozen_models, contexts, replies, exact)
            scores = score(say_JBS, end_JBS, by_formula, normaliser, frozen_models.weight_S, clip, frozen_models.spread)
            both = [
                policy_likelihood(graph, own, frozen_models.frozen, contexts, replies, p.temperature).logp_BR
                for graph, own in ((graphs.aligned, params), (graphs.policy, frozen_models.reference))
            ]
            kl_B = (both[0] - both[1]).sum(-1)
            return rank_CY, Validated(replies.tokens_BR, scores.total_B, kl_B, scores.signal_BS)

        def mode(params, frozen_models: FrozenModels, contexts: Contexts):
            return draw(params, frozen_models, contexts, jax.random.key(0), greedy=True).tokens_BR

        self._check, self._mode = (
            jax.jit(on_mesh(f, task.mesh), out_shardings=everywhere(task.mesh)) for f in (check, mode)
        )

    def __call__(self, params: Any, normaliser: Normaliser) -> dict[str, float]:
        """The figures of one check; the same random numbers for a context each time. Empty where there are no contexts.

        Returns:
          validation/hr@10: over the new items.
          validation/reward, validation/kl: means over one sampled reply a context.
          validation/sentiment-reward: Pearson's correlation of the sentiment shift predicted for these replies with
            their reward; NaN where either is constant.
          validation/share: how far the first items went from SFT to the optimum of the reward at their KL
            (`evaluation/optimum.py`); not there where they did not move. Beside it their expected rewards,
            validation/reward-sft, -ppo, -optimum and -rerank, and validation/kl-item.
          validation/recommends: share of the sampled replies that propose.
          validation/bleu-4, validation/repetition: corpus BLEU and repeated 4-grams (`evaluation/text.py`) of one
            greedy reply a context against the human's.
        """
        if not self.count:
            return {}

        def both(contexts: Contexts, *rest: jax.Array) -> tuple[Any, ...]:
            found = self._check(params, self.frozen_models, normaliser, contexts, *rest, self._key)
            return *found, self._mode(params, self.frozen_models, contexts)

        rank_IY, self.last, token_IR = self._batched(both)
        total_I, kl_I = self.last.reward_I, self.last.kl_I
        mood_I = self.last.signal_IS[:, column("sentiment")]
        hit = rank_IY[self._target_IY >= 0] <= 10
        said = [self.task.tokenizer.decode_reply(t, self.task.corpus.catalogue)[1] for t in token_IR]
        varied = np.ptp(total_I) > 0 and np.ptp(mood_I) > 0
        return {
            "validation/hr@10": float(hit.mean()),
            "validation/reward": float(total_I.mean()),
            "validation/kl": float(kl_I.mean()),
            "validation/sentiment-reward": float(np.corrcoef(total_I, mood_I)[0, 1]) if varied else float("nan"),
            "validation/recommends": float((self.last.token_IR[:, 0] != self.task.layout.say).mean()),
            **self._way(params, normaliser),
            "validation/bleu-4": bleu_4(said, self._references),
            "validation/repetition": repetition(said),
        }

    def _way(self, params: Any, normaliser: Normaliser) -> dict[str, float]:
        """From SFT to the optimum; nothing where `config.evaluation.optimum_acts` is 0."""
        task, acts = self.task, self.task.config.evaluation.optimum_acts
        if not acts:
            return {}
        if not len(self._reference_IN):
            self._reference_IN = first_item(task, self._sft, self._contexts, "")
        learned_IN = first_item(task, (self._graphs.aligned, params, self.frozen_models.frozen), self._contexts, "")
        judged = self._graphs, self.frozen_models, normaliser
        way = way_of(
            self._reference_IN, learned_IN, acts, lambda row_IA: item_rewards(task, *judged, self._contexts, row_IA, "")
        )
        earned = zip(("sft", "ppo", "optimum", "rerank"), way.earned_I4.mean(0), strict=True)
        share = {} if np.isnan(way.share) else {"validation/share": way.share}
        return share | {
            "validation/kl-item": way.kl,
            **{f"validation/reward-{name}": float(value) for name, value in earned},
        }

    def replies(self, params: Any, normaliser: Normaliser) -> Validated:
        """The sampled replies, as a check draws them."""
        return self._batched(lambda *batch: self._check(params, self.frozen_models, normaliser, *batch, self._key)[1])

    def _batched(self, function: Callable) -> Any:
        """`function(contexts, targets, their numbers)` over the contexts in batches; joined."""
        inputs = self._contexts, self._target_IY, np.arange(self.count, dtype=np.int32)
        return run_batched(self.task, lambda batch: function(*batch), self.count, inputs, "")
