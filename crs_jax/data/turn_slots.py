"""All turns of a corpus as flat arrays, with the slots that bear loss: what packing cuts its rows from.

A slot is a place whose hidden state predicts a token of a recommender's reply. Act slots stand at `<|rec|>` and at each
item of the act (next: an item, or `<|say|>`), word slots from `<|say|>` to the last word (next: a word, an item of the
act, or `<|end|>`). On the seeker's side, for a model of what seekers say, word slots stand from `<|seeker|>` to the
last word, and the items that may be named are those that the recommender proposed last; one that names another item
bears no loss.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from crs_jax.data.dialogue import RECOMMENDER, SEEKER
from crs_jax.data.encoded import Encoded, flatten, ranges, starts
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class TurnSlots:
    """Turns of all dialogues in a row, U in all; tokens, act slots and word slots in the same order.

    Attributes:
      dialogue_start: [dialogues + 1] first turn of each dialogue.
      replies_U: bool, the turns of the side that bears loss, the recommender's unless said otherwise.
      token_start, act_start, word_start: [U + 1] first token, act slot and word slot of each turn.
      tokens: int32, all tokens.
      act_at, word_at: int64, the slot's place in `tokens`.
      act_target: int32, an item row, or N for `<|say|>`.
      act_used: int32 [act slots, M], rows already proposed in this act, -1 padded.
      word_target: int32, a word or control id, or `item_offset` + j for the act's j-th item.
      word_items: int32 [word slots, M], the act's rows, -1 padded.
    """

    dialogue_start: np.ndarray
    replies_U: np.ndarray
    token_start: np.ndarray
    act_start: np.ndarray
    word_start: np.ndarray
    tokens: np.ndarray
    act_at: np.ndarray
    act_target: np.ndarray
    act_used: np.ndarray
    word_at: np.ndarray
    word_target: np.ndarray
    word_items: np.ndarray

    @classmethod
    def build(
        cls,
        encoded: Encoded,
        roles: Sequence[Sequence[str]] | None,
        *,
        row_tokens: int,
        act_slots: int,
        word_slots: int,
        act_items: int,
        tokenizer: DialogueTokenizer,
        side: str = RECOMMENDER,
    ) -> TurnSlots:
        """Flattens the corpus. A turn that no row could hold loses its last words (`<|end|>` stays).

        Args:
          encoded: tokens as `DialogueTokenizer.encode_dialogues` gives them.
          roles: of each turn, checked against the tokens; None: not checked.
          row_tokens, act_slots, word_slots: what one row holds.
          act_items: M.
          side: whose turns bear loss.
        """
        if row_tokens < act_items + 4 or act_slots < act_items + 1 or word_slots < 1:
            raise InputError(
                f"--config.sft.row_tokens={row_tokens} ({act_slots} act slots, {word_slots} word slots): too small for "
                f"a reply of {act_items} items; take at least {act_items + 4} tokens and {act_items + 1} act slots"
            )
        longest = min(row_tokens, word_slots)
        encoded = [
            [_cut(turn, row_tokens, word_slots, tokenizer, side) if len(turn) > longest else turn for turn in dialogue]
            for dialogue in encoded
        ]
        tokens, token_start, dialogue_start = flatten(encoded)
        replies_U = tokens[token_start[:-1]] == tokenizer.recommender
        if roles is not None:
            said = np.array([role == RECOMMENDER for dialogue in roles for role in dialogue], dtype=bool)
            if said.shape != replies_U.shape or (said != replies_U).any():
                raise ValueError("roles and encoded turns do not agree")

        if side == SEEKER:
            return cls._of_seekers(tokens, token_start, dialogue_start, ~replies_U, act_items, tokenizer)
        first_R, end_R = token_start[:-1][replies_U], token_start[1:][replies_U]
        say_R = np.flatnonzero(tokens == tokenizer.say)
        if len(say_R) != len(first_R) or ((say_R < first_R + 2) | (say_R >= end_R)).any():
            raise ValueError("each recommender turn holds one <|say|>, a seeker's none")
        acts_R, words_R = say_R - first_R - 1, end_R - 1 - say_R  # slots of each reply
        if acts_R.max(initial=1) > act_items + 1:
            raise ValueError(f"an act of {acts_R.max() - 1} items, where at most {act_items} were asked for")

        act_at, order_A, of_A = ranges(first_R + 1, acts_R)
        item_A = tokens[act_at + 1] - tokenizer.item_offset
        act_target = np.where(item_A >= 0, item_A, tokenizer.num_items).astype(np.int32)
        items_RM = np.full((len(first_R), act_items), -1, np.int32)
        is_item = item_A >= 0
        items_RM[of_A[is_item], order_A[is_item]] = item_A[is_item]
        act_used = np.where(np.arange(act_items) < order_A[:, None], items_RM[of_A], -1).astype(np.int32)

        word_at, _, of_W = ranges(say_R, words_R)
        word_target = tokens[word_at + 1].copy()
        word_items = items_RM[of_W]
        named = word_target >= tokenizer.item_offset
        same = word_items[named] == (word_target[named] - tokenizer.item_offset)[:, None]
        if not same.any(axis=1).all():
            raise ValueError("a reply names an item that its act does not propose")
        word_target[named] = tokenizer.item_offset + same.argmax(axis=1)

        counts_U = np.zeros((2, len(replies_U)), np.int64)
        counts_U[:, replies_U] = acts_R, words_R
        return cls(
            dialogue_start, replies_U, token_start, starts(counts_U[0]), starts(counts_U[1]), tokens,
            act_at, act_target, act_used, word_at, word_target, word_items,
        )  # fmt: skip

    @classmethod
    def _of_seekers(
        cls,
        tokens: np.ndarray,
        token_start: np.ndarray,
        dialogue_start: np.ndarray,
        seeker_U: np.ndarray,
        act_items: int,
        tokenizer: DialogueTokenizer,
    ) -> TurnSlots:
        """The seeker's side of a flattened corpus."""
        last_UM = np.full((len(seeker_U), act_items), -1, np.int32)  # what was proposed last before each turn
        for first, end in itertools.pairwise(dialogue_start.tolist()):
            last = np.full(act_items, -1, np.int32)
            for u in range(first, end):
                last_UM[u] = last
                if not seeker_U[u]:
                    turn = tokens[token_start[u] : token_start[u + 1]].tolist()
                    act = turn[2 : turn.index(tokenizer.say)]
                    last = np.array([*act, *[-1] * act_items], np.int32)[:act_items]
                    last = np.where(last < 0, -1, last - tokenizer.item_offset)
        first_S, length_S = token_start[:-1][seeker_U], np.diff(token_start)[seeker_U]
        word_at, _, of_W = ranges(first_S, length_S - 1)
        target, items = tokens[word_at + 1].copy(), last_UM[seeker_U][of_W]
        named = target >= tokenizer.item_offset
        same = (items == (target - tokenizer.item_offset)[:, None]) & named[:, None]
        target[named] = tokenizer.item_offset + same[named].argmax(axis=1)
        bears = ~named | same.any(axis=1)
        counts_U = np.zeros(len(seeker_U), np.int64)
        counts_U[seeker_U] = np.bincount(of_W[bears], minlength=len(first_S))
        none = np.zeros(0, np.int64)
        return cls(
            dialogue_start, seeker_U, token_start, np.zeros(len(token_start), np.int64), starts(counts_U), tokens,
            none, none.astype(np.int32), np.zeros((0, act_items), np.int32), word_at[bears], target[bears],
            items[bears],
        )  # fmt: skip


def _cut(turn: Sequence[int], row_tokens: int, word_slots: int, tokenizer: DialogueTokenizer, side: str) -> list[int]:
    keep = row_tokens - 1
    if side == SEEKER and turn[0] == tokenizer.seeker:
        keep = min(keep, word_slots)
    elif side == RECOMMENDER and tokenizer.say in turn:
        keep = min(keep, list(turn).index(tokenizer.say) + word_slots)
    if len(turn) - 1 <= keep:
        return list(turn)
    return [*tokenizer.whole_characters(list(turn[:keep])), tokenizer.end]
