"""What a finished run says of a dialogue: items, replies, and what the reward model foretells of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import Turn
from crs_jax.data.unlinked import Unlinked


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """An item with what the model gives it.

    Attributes:
      item_id: the corpus' id.
      title: without the year.
      year: None where it is not known.
      genres: lower case.
      probability: of being the next item proposed, among all items of the catalogue.
      score: the logit that it comes from, as the evaluation ranks by.
    """

    item_id: str
    title: str
    year: int | None
    genres: tuple[str, ...]
    probability: float
    score: float

    @property
    def name(self) -> str:
        """Title with year."""
        return f"{self.title} ({self.year})" if self.year else self.title


def recommendations(catalogue: Catalogue, rows: Sequence[int], scores_N: np.ndarray) -> list[Recommendation]:
    """The items of the rows, with their share of all items' probability."""
    share_N = np.exp(scores_N.astype(np.float64) - scores_N.max())
    share_N /= share_N.sum()
    chosen = [(catalogue.items[row], float(share_N[row]), float(scores_N[row])) for row in rows]
    return [Recommendation(item.item_id, item.title, item.year, item.genres, *found) for item, *found in chosen]


@dataclasses.dataclass(frozen=True)
class Score:
    """What the reward model foretells of a reply: how the seeker will react.

    In standard deviations over replies of the SFT model, whose mean is 0.

    Attributes:
      signals: by name: `engagement`, how long and how far they go along; `relevance`, how well the proposal fits what
        was asked for; `sentiment`, how their mood moves; what plugins add; `own`, of a run with a reward function of
        its own. None where a signal has no value: relevance where nothing new is proposed.
      reward: their weighted sum that PPO pays (`config.reward`), clipped.
    """

    signals: Mapping[str, float | None]
    reward: float


@dataclasses.dataclass(frozen=True)
class Reply:
    """A recommender's reply.

    Attributes:
      text: its words, titles written out; what is proposed and not said stands at the end.
      items: what it proposes, in order.
      top: the likeliest items before it was said, whatever it then proposed.
      turn: the same as a record, to go on with: `dialogue.append(reply.turn)`.
      tokens: as the model wrote it, after `<|rec|>`.
      unlinked: titles in the seeker's last message that the catalogue does not have, or has several times; the reply
        knows nothing of them. `str` of one is a sentence.
    """

    text: str
    items: tuple[Recommendation, ...]
    top: tuple[Recommendation, ...]
    turn: Turn
    tokens: tuple[int, ...] = dataclasses.field(repr=False)
    unlinked: tuple[Unlinked, ...] = ()
