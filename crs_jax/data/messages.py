"""Dialogues as programs and chat software hold them, made records.

A list, oldest first, of (role, text) pairs, of dicts with `role` and `content`, or of `Turn` records; a title in a text
is linked to its item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crs_jax.data.dialogue import RECOMMENDER, SEEKER, Turn
from crs_jax.data.titles import Titles
from crs_jax.errors import InputError

ROLES = {"seeker": SEEKER, "user": SEEKER, "recommender": RECOMMENDER, "assistant": RECOMMENDER}
Message = tuple[str, str] | Mapping[str, Any] | Turn


def read_dialogue(dialogue: Sequence[Message], titles: Titles) -> tuple[Turn, ...]:
    """The turns of a dialogue as users of the API give it, titles linked; messages without words are left out.

    Raises:
      InputError: a message has another shape or role, or none is left; names its place.
    """
    if isinstance(dialogue, (str, Mapping)) or not isinstance(dialogue, Sequence):
        raise InputError(f"dialogue is a {type(dialogue).__name__}; give a list of (role, text) pairs")
    turns = []
    for number, message in enumerate(dialogue):
        if isinstance(message, Turn):
            turns.append(message)
            continue
        if isinstance(message, Mapping):
            role, text = message.get("role"), message.get("content")
        elif isinstance(message, (tuple, list)) and len(message) == 2:
            role, text = message
        else:
            raise InputError(f"dialogue[{number}]: {message!r:.80}; give (role, text), or a dict with role and content")
        if role not in ROLES:
            raise InputError(f"dialogue[{number}]: role is {role!r:.80}, expected one of {', '.join(ROLES)}")
        if not isinstance(text, str):
            raise InputError(f"dialogue[{number}]: its words are {text!r:.80}, expected text")
        turn = titles.turn(ROLES[role], text)
        if turn.text:
            turns.append(turn)
    if not turns:
        raise InputError("dialogue: nothing was said; give at least one message with words")
    return tuple(turns)
