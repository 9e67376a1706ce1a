"""Packs whole dialogues into rows for supervised fine-tuning, so that each token is seen once an epoch.

A row holds several pieces of dialogues, each a segment that attends to itself alone. A piece is a dialogue, or as many
of its turns as a row holds; it ends at a reply of the recommender, since nothing after its last reply bears loss.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from crs_jax.data.dialogue import RECOMMENDER
from crs_jax.data.encoded import Encoded, ranges
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.data.turn_slots import TurnSlots

Rows = dict[str, Any]


def slots_of(row_tokens: int, act_items: int) -> tuple[int, int]:
    """Places of a row for loss on acts and on words: an act every six tokens, and two thirds of the tokens."""
    return max(row_tokens // 6, act_items + 1), row_tokens * 2 // 3


class Packer:
    """Packs one encoded corpus again and again, with other crops each time.

    Attributes:
      slots: the corpus as flat arrays.
    """

    def __init__(
        self,
        encoded: Encoded,
        roles: Sequence[Sequence[str]] | None = None,
        *,
        row_tokens: int,
        act_slots: int,
        word_slots: int,
        act_items: int,
        tokenizer: DialogueTokenizer,
        side: str = RECOMMENDER,
    ) -> None:
        """Arguments as for `pack`; `side` is whose turns bear loss."""
        self.slots = TurnSlots.build(
            encoded, roles, row_tokens=row_tokens, act_slots=act_slots, word_slots=word_slots, act_items=act_items,
            tokenizer=tokenizer, side=side,
        )  # fmt: skip
        self._capacity = np.array([row_tokens, act_slots, word_slots])
        self._pad, self._act_items = tokenizer.pad, act_items
        s = self.slots
        self._used = [s.token_start.tolist(), s.act_start.tolist(), s.word_start.tolist()]
        turns = np.arange(len(s.replies_U))
        # One past the last reply before turn u, and the first reply from turn u on.
        self._reply_end = np.concatenate([[0], np.maximum.accumulate(np.where(s.replies_U, turns + 1, 0))]).tolist()
        after = np.where(s.replies_U, turns, len(turns))[::-1]
        self._next_reply = [*np.minimum.accumulate(after)[::-1].tolist(), len(turns)]

    def pack(self, starts: Sequence[int] | None = None) -> Rows:
        """Rows of the whole corpus; see the function `pack`."""
        pieces = self._pieces(starts)
        sizes = np.array([[used[end] - used[first] for used in self._used] for first, end in pieces], np.int64)
        sizes = sizes.reshape(-1, 3)
        return self._fill(pieces, sizes, *self._first_fit(sizes))

    def epoch(self, *, rows: int, crop: float, rng: np.random.Generator) -> list[Rows]:
        """Shuffled batches; see `epoch_batches`."""
        bounds = self.slots.dialogue_start
        last = np.array(self._reply_end)[bounds[1:]] - 1 - bounds[:-1]  # the dialogue's last reply; < 0: it has none
        starts = np.where(rng.random(len(last)) < crop, rng.integers(0, np.maximum(last, 0) + 1), 0)
        packed = self.pack(starts.tolist())
        total = len(packed["tokens_RT"])
        empty = empty_rows(-total % rows, {name: array.shape[1:] for name, array in packed.items()}, self._pad)
        order = np.concatenate([rng.permutation(total), np.arange(total, total + -total % rows)]).astype(np.int64)
        padded = {name: np.concatenate([array, empty[name]]) for name, array in packed.items()}
        return [
            {name: array[order[at : at + rows]] for name, array in padded.items()} for at in range(0, len(order), rows)
        ]

    def _pieces(self, starts: Sequence[int] | None) -> list[tuple[int, int]]:
        """First turn and one past the last, over all dialogues' turns, of each piece."""
        bounds = self.slots.dialogue_start.tolist()
        limits = self._capacity.tolist()
        pieces = []
        for number, (first, end) in enumerate(itertools.pairwise(bounds)):
            start = first + (starts[number] if starts is not None else 0)
            while self._next_reply[start] < end:
                fits = min(
                    bisect.bisect_right(used, used[start] + limit) - 1
                    for used, limit in zip(self._used, limits, strict=True)
                )
                stop = self._reply_end[min(fits, end)]
                if stop > start:
                    pieces.append((start, stop))
                    start = stop
                else:  # what comes before the next reply fills a row by itself: its oldest turn goes
                    start += 1
                if start >= end:
                    break
        return pieces

    def _first_fit(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """First-fit by falling length: each piece's row, what the row held before it, and the number of rows."""
        row = np.zeros(len(sizes), np.int64)
        before = np.zeros_like(sizes)
        held = np.zeros((len(sizes), 3), np.int64)
        full, rows = 0, 0  # rows before `full` have no room for another piece
        smallest = sizes[:, 0].min(initial=0)
        for piece in np.argsort(-sizes[:, 0], kind="stable"):
            room = self._capacity - sizes[piece]
            while full < rows and held[full, 0] + smallest > self._capacity[0]:
                full += 1
            fits = (held[full:rows] <= room).all(axis=1)
            at = full + int(fits.argmax()) if fits.any() else rows
            rows = max(rows, at + 1)
            row[piece], before[piece] = at, held[at]
            held[at] += sizes[piece]
        return row, before, rows

    def _fill(
        self, pieces: list[tuple[int, int]], sizes: np.ndarray, row: np.ndarray, before: np.ndarray, rows: int
    ) -> Rows:
        s, (tokens, acts, words) = self.slots, self._capacity
        shapes = {
            **dict.fromkeys(("tokens_RT", "segment_RT", "dialogue_RT", "utterance_RT", "position_RT"), (tokens,)),
            **dict.fromkeys(("act_at_RA", "act_target_RA", "act_mask_RA"), (acts,)),
            **dict.fromkeys(("word_at_RW", "word_target_RW", "word_mask_RW"), (words,)),
            "act_used_RAM": (acts, self._act_items),
            "word_items_RWM": (words, self._act_items),
        }
        out = empty_rows(rows, shapes, self._pad)
        first = np.array([piece[0] for piece in pieces], np.int64)
        # Segments count 1, 2, .. within a row in the order of their places.
        order = np.lexsort((before[:, 0], row))
        segment = np.zeros(len(pieces), np.int64)
        segment[order] = np.arange(len(order)) - np.searchsorted(row[order], row[order]) + 1

        def places(kind: int) -> tuple[np.ndarray, ...]:
            source, place, of = ranges((s.token_start, s.act_start, s.word_start)[kind][first], sizes[:, kind])
            return source, place, of, row[of], before[of, kind] + place

        source, place, of, r, t = places(0)
        out["tokens_RT"][r, t] = s.tokens[source]
        out["segment_RT"][r, t] = segment[of]
        out["position_RT"][r, t] = place
        turn = np.repeat(np.arange(len(s.replies_U)), np.diff(s.token_start))[source]
        dialogue = np.repeat(np.arange(len(s.dialogue_start) - 1), np.diff(s.dialogue_start))[turn]
        out["dialogue_RT"][r, t] = dialogue
        out["utterance_RT"][r, t] = turn - s.dialogue_start[dialogue]

        shift = before[:, 0] - s.token_start[first]  # from a place in the corpus to one in the row
        source, _, of, r, a = places(1)
        out["act_at_RA"][r, a] = s.act_at[source] + shift[of]
        out["act_target_RA"][r, a] = s.act_target[source]
        out["act_used_RAM"][r, a] = s.act_used[source]
        out["act_mask_RA"][r, a] = True
        source, _, of, r, w = places(2)
        out["word_at_RW"][r, w] = s.word_at[source] + shift[of]
        out["word_target_RW"][r, w] = s.word_target[source]
        out["word_items_RWM"][r, w] = s.word_items[source]
        out["word_mask_RW"][r, w] = True
        return out


def empty_rows(rows: int, shapes: dict[str, tuple[int, ...]], pad: int) -> Rows:
    """Rows that hold nothing: padding, segment 0, no slot."""
    out: Rows = {}
    for name, shape in shapes.items():
        fill = {"tokens_RT": pad, "act_used_RAM": -1, "word_items_RWM": -1}.get(name, 0)
        out[name] = np.full((rows, *shape), fill, bool if "_mask_" in name else np.int32)
    return out


def pack(
    encoded: Encoded,
    roles: Sequence[Sequence[str]] | None,
    *,
    row_tokens: int,
    act_slots: int,
    word_slots: int,
    act_items: int,
    tokenizer: DialogueTokenizer,
    starts: Sequence[int] | None = None,
) -> Rows:
    """Packs each dialogue once, first-fit by falling length; a longer one than a row continues as another segment.

    Only the recommender's replies bear loss. A turn that no row could hold is cut at its end. Turns after a piece's
    last reply are left out: nothing that bears loss sees them.

    Args:
      encoded, roles: tokens and role of each turn, dialogue -> turn; roles are checked, or None.
      row_tokens, act_slots, word_slots: T, A and W, what one row holds.
      act_items: M.
      starts: first turn of each dialogue (what stands before is left out); None: the whole dialogue.

    Returns:
      int32 (masks bool), rows R first: tokens_RT (pad where empty), segment_RT (0 where empty, then 1..), dialogue_RT
      (number in `encoded`, 0 where empty), utterance_RT (turn within the dialogue), position_RT (within the segment);
      act_at_RA (place in the row whose hidden state predicts), act_target_RA (item row, N for `<|say|>`), act_used_RAM
      (rows already in this act, -1 padded), act_mask_RA; word_at_RW, word_target_RW (word or control id, `item_offset`
      + j for the act's j-th item), word_items_RWM (the act's rows, -1 padded), word_mask_RW.
    """
    packer = Packer(
        encoded, roles, row_tokens=row_tokens, act_slots=act_slots, word_slots=word_slots, act_items=act_items,
        tokenizer=tokenizer,
    )  # fmt: skip
    return packer.pack(starts)


def epoch_batches(
    encoded: Encoded,
    roles: Sequence[Sequence[str]] | None,
    *,
    row_tokens: int,
    act_slots: int,
    word_slots: int,
    act_items: int,
    tokenizer: DialogueTokenizer,
    rows: int,
    crop: float,
    rng: np.random.Generator,
) -> list[Rows]:
    """One epoch: batches of exactly `rows` rows, shuffled, the last filled with empty rows.

    Args:
      crop: share of dialogues that start at a random turn, none after the last reply.
      rng: of the shuffle and the crops. The rest as for `pack`; for several epochs keep a `Packer`.
    """
    packer = Packer(
        encoded, roles, row_tokens=row_tokens, act_slots=act_slots, word_slots=word_slots, act_items=act_items,
        tokenizer=tokenizer,
    )  # fmt: skip
    return packer.epoch(rows=rows, crop=crop, rng=rng)
