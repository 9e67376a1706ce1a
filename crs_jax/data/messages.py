"""Dialogues as programs and chat software hold them, made records.

A list, oldest first, of (role, text) pairs, of dicts with `role` and `content`, or of `Turn` records; a title in a text
is linked to its item. A text can be a list of parts, `{"type": "text", "text": ...}`, which are joined by spaces.

System messages are left out: the models learnt from two people's dialogues and follow no instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crs_jax.data.dialogue import RECOMMENDER, SEEKER, Turn
from crs_jax.data.titles import Titles
from crs_jax.runtime.errors import InputError

ROLES = {"seeker": SEEKER, "user": SEEKER, "recommender": RECOMMENDER, "assistant": RECOMMENDER}
SYSTEM = ("system", "developer")
TEXT_PARTS = ("text", "input_text", "output_text")
Message = tuple[str, Any] | Mapping[str, Any] | Turn


def read_dialogue(dialogue: Sequence[Message], titles: Titles) -> tuple[Turn, ...]:
    """The turns of a dialogue as users of the API give it, titles linked; messages without words are left out.

    Raises:
      InputError: a message has another shape or role, or none is left; names its place.
    """
    if isinstance(dialogue, (str, bytes, Mapping)) or not isinstance(dialogue, Sequence):
        raise InputError(f"dialogue is a {type(dialogue).__name__}; give a list of (role, text) pairs")
    turns = []
    for number, message in enumerate(dialogue):
        at = f"dialogue[{number}]"
        if isinstance(message, Turn):
            turns.append(message)
            continue
        if isinstance(message, Mapping):
            role, content = message.get("role"), message.get("content")
        elif isinstance(message, (tuple, list)) and len(message) == 2:
            role, content = message
        else:
            raise InputError(f"{at}: {message!r:.80}; give (role, text), or a dict with role and content")
        turn = read_message(role, content, titles, f"{at}: role is", f"{at}: its words are")
        if turn is not None:
            turns.append(turn)
    if not turns:
        raise InputError("dialogue: nothing was said; give at least one message with words")
    return tuple(turns)


def read_message(
    role: Any, content: Any, titles: Titles, role_is: str = "role is", words_are: str = "text is"
) -> Turn | None:
    """One message; None for a system message, or where it has no words. `role_is` and `words_are` begin the errors."""
    if not isinstance(role, str) or role not in (*ROLES, *SYSTEM):
        raise InputError(f"{role_is} {role!r:.80}, expected one of {', '.join((*ROLES, *SYSTEM))}")
    text = _text(content, words_are)
    if role in SYSTEM:
        return None
    turn = titles.turn(ROLES[role], text)
    return turn if turn.text else None


def _text(content: Any, words_are: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise InputError(f"{words_are} {content!r:.80}, expected text, or a list of text parts")
    texts = []
    for part in content:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else ("text", part)
        if kind not in TEXT_PARTS:
            raise InputError(f"{words_are} a list with a part of type {kind!r:.80}; only text can be read")
        if not isinstance(text, str):
            raise InputError(f"{words_are} a list with {part!r:.80}, expected {{'type': 'text', 'text': ...}}")
        texts.append(text)
    return " ".join(texts)
