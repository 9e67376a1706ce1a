"""Ids of tokens: words, then controls, then items."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where words, controls and items stand among the token ids (see `data/tokenizer.py`).

    Attributes:
      num_words: V, BPE tokens, ids 0..V-1.
      item_offset: id of item row 0; the controls stand between the words and it.
      num_items: N.
      act_items: M, most items in one act.
      unused: word ids that no text has (GPT-2's `<|endoftext|>`); never sampled.
    """

    num_words: int
    item_offset: int
    num_items: int
    act_items: int
    pad: int
    seeker: int
    recommender: int
    rec: int
    say: int
    end: int
    unused: tuple[int, ...] = ()
