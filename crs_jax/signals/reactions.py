"""Which messages are the seeker's reaction to which recommender message.

People send several messages in a row, each its own record. The reaction belongs to the recommender's last message
before the seeker speaks, and is all that the seeker says until the recommender's next message.
"""

from __future__ import annotations

import dataclasses

from crs_jax.data.dialogue import MENTION, SEEKER, Dialogue, Turn


@dataclasses.dataclass(frozen=True)
class Reaction:
    """One recommender message that ends a run of them, and what surrounds it.

    Attributes:
      turn: index of that message.
      proposal: the recommender's run of messages, the one at `turn` last.
      before: the seeker's run before the proposal; empty where the recommender opens the dialogue.
      after: the seeker's run after it, the reaction; empty where the dialogue ends with the proposal.
      returns: whether the seeker speaks once more after the recommender's next run.
    """

    turn: int
    proposal: tuple[Turn, ...]
    before: tuple[Turn, ...]
    after: tuple[Turn, ...]
    returns: bool


def reactions(dialogue: Dialogue) -> list[Reaction]:
    """One `Reaction` for each run of recommender messages, in order."""
    runs: list[tuple[int, list[Turn]]] = []  # index of the first message, messages
    for index, turn in enumerate(dialogue.turns):
        if runs and runs[-1][1][0].role == turn.role:
            runs[-1][1].append(turn)
        else:
            runs.append((index, [turn]))
    out = []
    for r, (start, run) in enumerate(runs):
        if run[0].role == SEEKER:
            continue
        before = tuple(runs[r - 1][1]) if r else ()
        after = tuple(runs[r + 1][1]) if r + 1 < len(runs) else ()
        out.append(Reaction(start + len(run) - 1, tuple(run), before, after, returns=r + 3 < len(runs)))
    return out


def words_of(turns: tuple[Turn, ...]) -> int:
    """Words in the messages; an item's title counts as one, however long it is."""
    return sum(len(turn.text.replace(MENTION, " x ").split()) for turn in turns)


def plain_text(turns: tuple[Turn, ...]) -> str:
    """What was said, joined, without the items: titles ("The Hangover", "Love Actually") carry no mood."""
    return " ".join(" ".join(turn.text.replace(MENTION, " ") for turn in turns).split())
