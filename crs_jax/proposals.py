"""What a finished run says of a dialogue: items, replies, and what the reward model foretells of these."""

from __future__ import annotations

import dataclasses

from crs_jax.data.dialogue import Turn


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


@dataclasses.dataclass(frozen=True)
class Score:
    """What the reward model foretells of a reply: how the seeker will react.

    In standard deviations over replies of the SFT model, whose mean is 0.

    Attributes:
      engagement: how long and how far they go along.
      relevance: how well the proposal fits what was asked for; None where nothing new is proposed.
      sentiment_shift: how their mood moves.
      reward: the weighted sum that PPO pays (`config.reward`), clipped.
      own: the run's own reward function; None without one, or where it has no opinion.
    """

    engagement: float
    relevance: float | None
    sentiment_shift: float
    reward: float
    own: float | None = None


@dataclasses.dataclass(frozen=True)
class Reply:
    """A recommender's reply.

    Attributes:
      text: its words, titles written out; what is proposed and not said stands at the end.
      items: what it proposes, in order.
      top: the likeliest items before it was said, whatever it then proposed.
      turn: the same as a record, to go on with: `dialogue.append(reply.turn)`.
      tokens: as the model wrote it, after `<|rec|>`.
    """

    text: str
    items: tuple[Recommendation, ...]
    top: tuple[Recommendation, ...]
    turn: Turn
    tokens: tuple[int, ...] = dataclasses.field(repr=False)
