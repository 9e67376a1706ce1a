"""Cuts validation (and, where a corpus has none, test) from train so that neither persons nor openings are shared.

All cuts are a function of the dialogues and a seed; dialogues keep their order.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np

from crs_jax.data.dialogue import Dialogue
from crs_jax.runtime.errors import InputError

TEST_SEED = 20190728  # a cut test part must be the same in every run, whatever its seed
TEST_SHARE = 0.15
STARTS = 8


def opening(dialogue: Dialogue, min_words: int = 1) -> tuple[str, ...]:
    """The first messages, up to the one that brings them to `min_words`: case, punctuation and items' ids apart.

    With `min_words` above a greeting's length, 'Hello' alone does not make two dialogues share an opening.
    """
    messages: list[str] = []
    words = 0
    for turn in dialogue.turns:
        tokens = re.findall(r"\w+", turn.render().casefold())
        messages.append(" ".join(tokens))
        words += len(tokens)
        if words >= min_words:
            break
    return tuple(messages)


def by_recommender(train: Sequence[Dialogue], count: int, seed: int) -> tuple[list[Dialogue], list[Dialogue], int]:
    """(train, validation, dropped): all dialogues of some recommenders, at most `count`.

    No recommender stands on both sides. Train dialogues that share a seeker with validation are dropped: a split by
    conversation alone is too easy, since one person talks of the same films again. Most seekers met many recommenders,
    so randomly drawn ones would drop two thirds of ReDial's train; from a random first one, the next is always the one
    that drops fewest for each dialogue it brings, and the best of `STARTS` such draws is taken.
    """
    _check_count(count)
    if len({d.recommender_id or d.dialogue_id for d in train}) < 2:  # a bot's logs: persons are on the other side
        drawn = _draw(train, [d.seeker_id or d.dialogue_id for d in train], count, seed)
        kept = [d for i, d in enumerate(train) if i not in drawn]
        _check_train(len(kept), count, len(train))
        return kept, [train[i] for i in sorted(drawn)], 0
    names = [d.recommender_id or d.dialogue_id for d in train]
    order = {name: row for row, name in enumerate(dict.fromkeys(names))}
    met = [d.seeker_id or f"?{d.dialogue_id}" for d in train]
    column = {seeker: s for s, seeker in enumerate(dict.fromkeys(met))}
    met_RS = np.zeros((len(order), len(column)), np.int64)
    np.add.at(met_RS, ([order[n] for n in names], [column[s] for s in met]), 1)
    rng = np.random.default_rng(seed)
    starts = [_gather(met_RS, count, rng) for _ in range(STARTS)]
    chosen_R = max(starts, key=lambda rows_R: _kept(met_RS, rows_R))
    held = [bool(chosen_R[order[name]]) for name in names]
    shared = {d.seeker_id for d, out in zip(train, held, strict=True) if out} - {None}
    clear = [d for d, out in zip(train, held, strict=True) if not out and d.seeker_id not in shared]
    validation = [d for d, out in zip(train, held, strict=True) if out]
    _check_train(len(clear), count, len(train))
    return clear, validation, len(train) - len(clear) - len(validation)


def _gather(met_RS: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Recommenders (bool [R]) gathered greedily; `met_RS` counts the dialogues of recommender R with seeker S."""
    size_R, of_seeker_S = met_RS.sum(1), met_RS.sum(0)
    rank_R = rng.permutation(len(size_R))
    chosen_R = np.zeros(len(size_R), bool)
    inside_S = np.zeros_like(of_seeker_S)
    while (fits_R := ~chosen_R & (size_R + inside_S.sum() <= count)).any():
        rows = np.flatnonzero(fits_R)
        after_RS = inside_S + met_RS[rows]
        dropped_R = ((after_RS > 0) * (of_seeker_S - after_RS)).sum(1)
        gain_R = (dropped_R - ((inside_S > 0) * (of_seeker_S - inside_S)).sum()) / size_R[rows]
        best = rows[np.lexsort((rank_R[rows], gain_R))[0]] if chosen_R.any() else rows[np.argmin(rank_R[rows])]
        chosen_R[best] = True
        inside_S = inside_S + met_RS[best]
    if count and not chosen_R.any() and len(size_R) > 1:
        chosen_R[np.argmin(size_R)] = True
    return chosen_R


def _kept(met_RS: np.ndarray, chosen_R: np.ndarray) -> int:
    """Dialogues of use: those left to train on and those in validation."""
    inside_S = met_RS[chosen_R].sum(0)
    return int(met_RS.sum() - ((inside_S > 0) * (met_RS.sum(0) - inside_S)).sum())


def by_opening(
    train: Sequence[Dialogue], count: int, seed: int, min_words: int = 1
) -> tuple[list[Dialogue], list[Dialogue]]:
    """(train, validation): at most `count` random dialogues; those with the same opening stay together."""
    validation = _draw(train, [opening(d, min_words) for d in train], count, seed)
    kept = [i for i in range(len(train)) if i not in validation]
    _check_train(len(kept), count, len(train))
    return [train[i] for i in kept], [train[i] for i in sorted(validation)]


def cut_test(dialogues: Sequence[Dialogue]) -> tuple[list[Dialogue], list[Dialogue]]:
    """(train, test) of a corpus without a test part: 15 % by opening, the same for every seed."""
    return by_opening(dialogues, max(1, round(TEST_SHARE * len(dialogues))), TEST_SEED)


def drop_shared(train: Sequence[Dialogue], test: Sequence[Dialogue], min_words: int = 1) -> list[Dialogue]:
    """Train without the dialogues whose opening stands in test."""
    openings = {opening(d, min_words) for d in test}
    return [d for d in train if opening(d, min_words) not in openings]


def subset(dialogues: Sequence[Dialogue], count: int, seed: int) -> tuple[Dialogue, ...]:
    """`count` random dialogues in their order; all of them for 0."""
    if count < 0:
        raise InputError(f"a number of dialogues is {count}: set it to 0 (all) or more")
    if not count or count >= len(dialogues):
        return tuple(dialogues)
    chosen = np.random.default_rng(seed).choice(len(dialogues), size=count, replace=False)
    return tuple(dialogues[i] for i in np.sort(chosen))


def _draw(dialogues: Sequence[Dialogue], keys: Sequence[Hashable], count: int, seed: int) -> set[int]:
    """Indices of whole groups in random order, each taken if it still fits; the smallest group where none does."""
    _check_count(count)
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    members: list[list[int]] = list(groups.values())
    drawn: set[int] = set()
    for g in np.random.default_rng(seed).permutation(len(members)):
        group = members[g]
        if len(drawn) + len(group) <= count:
            drawn.update(group)
        if len(drawn) == count:
            break
    if count and not drawn and len(members) > 1:
        drawn.update(sorted(members, key=len)[0])
    return drawn


def _check_count(count: int) -> None:
    if count < 0:
        raise InputError(f"config.data.validation_dialogues is {count}: set it to 0 or more")


def _check_train(left: int, count: int, given: int) -> None:
    if not left:
        raise InputError(
            f"--config.data.validation_dialogues={count} leaves nothing to train on of {given} dialogues: set it "
            f"lower, such as {max(given // 10, 1)}"
        )
