"""Records: one type for the dialogues of every corpus.

A turn's text never holds an item id. Each mention of an item is the single character `MENTION`, and `items` names them
in order, so no text a user types can be taken for an item.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

SEEKER = "seeker"
RECOMMENDER = "recommender"
MENTION = "\ufffc"  # OBJECT REPLACEMENT CHARACTER; loaders drop it from raw text


@dataclasses.dataclass(frozen=True)
class Feedback:
    """What the seeker's questionnaire says of one item: filled in after the dialogue, so never a model input.

    Attributes:
      suggested: 0 named by the seeker, 1 proposed by the recommender, None not said.
      seen: 0 no, 1 yes, None not said.
      liked: 0 no, 1 yes, None not said.
    """

    suggested: int | None = None
    seen: int | None = None
    liked: int | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
      role: `SEEKER` or `RECOMMENDER`.
      text: the words, with `MENTION` where an item is named.
      items: item ids, one for each `MENTION`, in order (an id can repeat).
      seconds: when it was sent, in seconds since the first message; None where the corpus does not say.
    """

    role: str
    text: str
    items: tuple[str, ...] = ()
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.role not in (SEEKER, RECOMMENDER):
            raise ValueError(f"role is {self.role!r}, expected {SEEKER!r} or {RECOMMENDER!r}")
        if self.text.count(MENTION) != len(self.items):
            raise ValueError(f"text has {self.text.count(MENTION)} item mentions, items has {len(self.items)}")

    @property
    def distinct_items(self) -> tuple[str, ...]:
        """Items in order of first mention, each once."""
        return tuple(dict.fromkeys(self.items))

    def render(self, titles: Mapping[str, str] | None = None) -> str:
        """The text as a person reads it, each mention replaced by its title (by `@id` without titles)."""
        parts = self.text.split(MENTION)
        out = [parts[0]]
        for item, rest in zip(self.items, parts[1:], strict=True):
            out += [titles[item] if titles is not None else f"@{item}", rest]
        return "".join(out)


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One conversation, messages in the order sent (one speaker can send several in a row).

    Attributes:
      dialogue_id: unique within its corpus.
      turns: at least one.
      feedback: the seeker's answers by item id; empty where the corpus has none.
      seeker_id, recommender_id: the persons, where known (splits are cut by them).
      source: file and line it came from, for error messages.
    """

    dialogue_id: str
    turns: tuple[Turn, ...]
    feedback: Mapping[str, Feedback] = dataclasses.field(default_factory=dict)
    seeker_id: str | None = None
    recommender_id: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"{self.source or self.dialogue_id}: a dialogue without messages")
