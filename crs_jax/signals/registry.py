"""The registry of signals: the parts of the reward, an entry each.

R = sum over signals of weight * signal. A signal has a weak label for each logged reply, which the reward model's head
of that name learns to predict, or a formula in place of the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from crs_jax.runtime.registry import Registry

if TYPE_CHECKING:  # flags are read without JAX
    import jax
    import numpy as np

    from crs_jax.data.catalogue import Catalogue
    from crs_jax.data.dialogue import Dialogue
    from crs_jax.features.context import ContextFeatures, Embed
    from crs_jax.signals.feedback_log import FeedbackLog


class Sources(NamedTuple):
    """What labels are made from.

    Attributes:
      train: the training dialogues, which a labeller may be fitted on.
      catalogue, items_NE: the items, and their embeddings less the mean.
      embed: sentence embeddings of texts.
      window: utterances of context.
      settings: `config.signals`.
      log: logged dwell times and clicks of any split; None without.
    """

    train: Sequence[Dialogue]
    catalogue: Catalogue
    items_NE: np.ndarray
    embed: Embed
    window: int
    settings: Mapping[str, Any]
    log: FeedbackLog | None = None


class Labeller(NamedTuple):
    """What gives labels.

    Attributes:
      label: of each dialogue, float32 `[turns]` with a value for recommenders' turns; NaN where there is none. Reads
        neither `liked` nor `seen`, which are answers and not behaviour.
      counts: how many replies its parts are known for, by name.
    """

    label: Callable[[Sequence[Dialogue]], list[np.ndarray]]
    counts: Callable[[Sequence[Dialogue]], dict[str, int]] = lambda dialogues: {}


@dataclasses.dataclass(frozen=True)
class Signal:
    """A part of the reward.

    Attributes:
      fit: `Sources` -> `Labeller`.
      weight: the setting of its weight within `config.reward`; one that a plugin adds has `weights.NAME`.
      default: that weight, where nobody sets it.
      score: its formula, where it has one: (features of contexts, `[B, M]` rows of the items proposed that were not
        named before, -1 padded, `items_NE`) -> float32 `[B]`, NaN where there is no value; runs inside jit. It takes
        the place of the head, and says where the signal exists.
      of_staying: whether the seeker's staying is a part of its label.
    """

    fit: Callable[[Sources], Labeller]
    weight: str = ""
    default: float = 1.0
    score: Callable[[ContextFeatures, jax.Array, jax.Array], jax.Array] | None = None
    of_staying: bool = False


def _engagement(sources: Sources) -> Labeller:
    from crs_jax.signals.engagement import EngagementModel, availability

    model = EngagementModel.of(sources)
    return Labeller(model.score, lambda dialogues: availability(dialogues, model))


def _relevance(sources: Sources) -> Labeller:
    from crs_jax.signals.relevance import turn_relevance

    given = sources.catalogue, sources.items_NE, sources.embed, sources.window
    return Labeller(lambda dialogues: turn_relevance(dialogues, *given))


def _relevance_score(features: ContextFeatures, new_BM: jax.Array, items_NE: jax.Array) -> jax.Array:
    from crs_jax.signals.relevance import relevance

    return relevance(new_BM, features.text, features.named_mean, items_NE)


def _sentiment(sources: Sources) -> Labeller:
    from crs_jax.signals.sentiment import carried_over, sentiment_shift

    kind = sources.settings["sentiment"]
    carried = 1.0 if sources.settings["shift"] == "difference" else carried_over(sources.train, kind)
    return Labeller(lambda dialogues: sentiment_shift(dialogues, kind, carried))


SIGNALS = Registry(
    "signal",
    {
        "engagement": Signal(_engagement, "alpha", of_staying=True),
        "relevance": Signal(_relevance, "beta", score=_relevance_score),
        "sentiment": Signal(_sentiment, "gamma"),
    },
)
OWN = "own"
"""The name of a user's own reward function (`training/own_reward.py`), which stands behind the signals."""


def column(name: str) -> int:
    """Its place among the signals, the last axis of what has an S."""
    return list(SIGNALS).index(name)


def weights(reward: Mapping[str, Any]) -> list[float]:
    """The signals' weights, of `config.reward`."""
    return [reward[one.weight] if one.weight else reward["weights"][name] for name, one in SIGNALS.items()]


def rewards() -> tuple[str, ...]:
    """What a reward is made of: the signals, and last a user's own function, where there is one."""
    return (*SIGNALS, OWN)
