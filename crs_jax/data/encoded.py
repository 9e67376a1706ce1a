"""Encoded corpora as flat arrays: a dialogue's turns lie side by side, so any run of turns is one slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Encoded = Sequence[Sequence[Sequence[int]]]  # dialogue -> turn -> tokens


def starts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Exclusive cumulative sum, int64, with the total at the end: where each of several neighbours begins."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64), dtype=np.int64)])


def flatten(encoded: Encoded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens (int32), the first token of each turn, the first turn of each dialogue; see `starts`."""
    dialogue_start = starts([len(dialogue) for dialogue in encoded])
    token_start = starts([len(turn) for dialogue in encoded for turn in dialogue])
    every = (token for dialogue in encoded for turn in dialogue for token in turn)
    return np.fromiter(every, np.int32, count=int(token_start[-1])), token_start, dialogue_start


def ranges(first: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranges `first[i] .. first[i] + length[i] - 1`, one after the other: the numbers, their order within, and i."""
    of = np.repeat(np.arange(len(first)), length)
    order = np.arange(len(of)) - starts(length)[:-1][of]
    return first[of] + order, order, of
