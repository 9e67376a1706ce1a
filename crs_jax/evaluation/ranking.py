"""Ranking protocol: every item a recommender message names is one target, ranked among candidates.

- `all`: every target; candidates are the whole catalogue.
- `fresh`: targets not named earlier in the dialogue. Items named earlier are not candidates: they cannot be right, and
  whether to repeat one is another question than what to propose next. (The reference figures of popularity on ReDial's
  test set, .013/.059/.163, are met with them left out; with them in it is .013/.058/.158. Published systems may have
  ranked them too, which costs them a little.)
- `full`: all candidates. `sampled`: the target and uniform negatives, none of them a target of the same message.

Other targets of the same message stay in the full list. Ties count against the target, so constant scores earn nothing.
Figures are means over pairs; intervals resample dialogues, since a dialogue's messages are not independent.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import Dialogue
from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.evaluation.pairs import Pairs
from crs_jax.runtime.errors import InputError

KS = (1, 5, 10, 50)
_ROWS = 256  # instances compared at a time


def check_scores(scores_IN: np.ndarray, pairs: Pairs, dialogues: Sequence[Dialogue] | None = None) -> None:
    """`InputError` that names the first instance whose scores are not all finite, or a wrong shape."""
    if scores_IN.ndim != 2 or len(scores_IN) != len(pairs.dialogue_I):
        raise InputError(f"scores have shape {scores_IN.shape}, expected one row for {len(pairs.dialogue_I)} instances")
    for start in range(0, len(scores_IN), _ROWS):
        bad_BN = ~np.isfinite(scores_IN[start : start + _ROWS])
        if bad_BN.any():
            row, item = (int(x) for x in np.argwhere(bad_BN)[0])
            number = int(pairs.dialogue_I[start + row])
            where = f"dialogue {dialogues[number].dialogue_id}" if dialogues is not None else f"dialogue index {number}"
            raise InputError(
                f"scores of instance {start + row} ({where}), item row {item}: {bad_BN[row].sum()} of "
                f"{bad_BN.shape[1]} values are not finite (first: {scores_IN[start + row, item]}); "
                "every item needs a finite score"
            )


def full_ranks(scores_IN: np.ndarray, pairs: Pairs, exclude_named: bool = False) -> np.ndarray:
    """Rank of each target in the whole catalogue.

    Args:
      scores_IN: finite scores, higher is better; one row an instance.
      pairs: of those instances.
      exclude_named: items named before the message are not candidates. A target that itself was named earlier stays.

    Returns:
      int32 [P], 1 is best; an item with the target's score counts as better.
    """
    check_scores(scores_IN, pairs)
    ranks_P = np.empty(len(pairs), np.int32)
    for start in range(0, len(pairs), _ROWS):
        part = slice(start, start + _ROWS)
        instance_B, target_B = pairs.instance_P[part], pairs.target_P[part]
        score_B = scores_IN[instance_B, target_B]
        ranks_B = (scores_IN[instance_B] >= score_B[:, None]).sum(1)
        if exclude_named:
            named_BX = pairs.named_IX[instance_B]
            score_BX = np.take_along_axis(scores_IN[instance_B], np.maximum(named_BX, 0), 1)
            out_BX = (named_BX >= 0) & (named_BX != target_B[:, None]) & (score_BX >= score_B[:, None])
            ranks_B = ranks_B - out_BX.sum(1)
        ranks_P[part] = ranks_B
    return ranks_P


@functools.lru_cache(maxsize=4)
def draw_negatives(pairs: Pairs, num_items: int, negatives: int, seed: int, exclude_named: bool = False) -> np.ndarray:
    """Items each target is ranked against: drawn uniformly without replacement, the same for every system.

    Never a target of the same message, nor an item named earlier if `exclude_named`. Where fewer than `negatives` items
    are left, all of them, padded with -1. Returns int32 [P, negatives].
    """
    rng = np.random.default_rng([seed, 20_101])
    out_PK = np.full((len(pairs), negatives), -1, np.int32)
    last = min(negatives, num_items)
    for start in range(0, len(pairs), _ROWS):
        instance_B = pairs.instance_P[start : start + _ROWS]
        keys_BN = rng.random((len(instance_B), num_items), np.float32)
        barred_BX = pairs.targets_IX[instance_B]
        if exclude_named:
            barred_BX = np.concatenate([barred_BX, pairs.named_IX[instance_B]], 1)
        row_BX = np.broadcast_to(np.arange(len(instance_B))[:, None], barred_BX.shape)
        keys_BN[row_BX[barred_BX >= 0], barred_BX[barred_BX >= 0]] = 2.0
        drawn_BK = np.argpartition(keys_BN, last - 1, axis=1)[:, :last]
        free_BK = np.take_along_axis(keys_BN, drawn_BK, 1) < 2.0
        out_PK[start : start + _ROWS, :last] = np.where(free_BK, drawn_BK, -1)
    return out_PK


def sampled_ranks(
    scores_IN: np.ndarray, pairs: Pairs, negatives: int = 99, seed: int = 0, exclude_named: bool = False
) -> np.ndarray:
    """Rank of each target among itself and `negatives` uniform negatives: int32 [P], ties against the target."""
    check_scores(scores_IN, pairs)
    drawn_PK = draw_negatives(pairs, scores_IN.shape[1], negatives, seed, exclude_named)
    score_PK = scores_IN[pairs.instance_P[:, None], np.maximum(drawn_PK, 0)]
    score_P = scores_IN[pairs.instance_P, pairs.target_P]
    return 1 + ((score_PK >= score_P[:, None]) & (drawn_PK >= 0)).sum(1, dtype=np.int32)


def gains(ranks_P: np.ndarray, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """What each pair earns, float64 [P] in [0, 1], by metric.

    With one relevant item: hr@k (recall) is 1 within the first k; ndcg@k is 1 / log2(1 + rank) there (the ideal list
    has gain 1); mrr@k is 1 / rank there.
    """
    rank_P = np.asarray(ranks_P, np.float64)
    out = {}
    for k in ks:
        hit_P = rank_P <= k
        out[f"hr@{k}"] = hit_P.astype(np.float64)
        out[f"ndcg@{k}"] = hit_P / np.log2(1.0 + rank_P)
        out[f"mrr@{k}"] = hit_P / rank_P
    return out


def summarise(
    ranks_P: np.ndarray, dialogue_P: np.ndarray, ks: Sequence[int] = KS, bootstrap: int = 1000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Means over pairs with 95 % percentile intervals from resampling dialogues.

    Returns:
      `{"hr@1": {"value", "low", "high"}, "ndcg@1": ..., "mrr@1": ..., ...}`; NaN everywhere without pairs.
    """
    by_metric = gains(ranks_P, ks)
    if not len(ranks_P):
        return {name: {"value": float("nan"), "low": float("nan"), "high": float("nan")} for name in by_metric}
    weights = resample(dialogue_P, bootstrap, seed)
    means_RM = weights.means(np.stack(list(by_metric.values()), 1))
    return {name: interval(gain_P.mean(), means_RM[:, m]) for m, (name, gain_P) in enumerate(by_metric.items())}


def ranks_by_protocol(
    scores_IN: np.ndarray, pairs: Pairs, negatives: int = 99, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Ranks under the four protocols, `{"all": {"full", "sampled"}, "fresh": {...}}`.

    Under `all` of every pair, under `fresh` of `pairs.select(pairs.fresh_P)`.
    """
    fresh = _fresh(pairs)
    return {
        "all": {
            "full": full_ranks(scores_IN, pairs),
            "sampled": sampled_ranks(scores_IN, pairs, negatives, seed),
        },
        "fresh": {
            "full": full_ranks(scores_IN, fresh, exclude_named=True),
            "sampled": sampled_ranks(scores_IN, fresh, negatives, seed, exclude_named=True),
        },
    }


@functools.lru_cache(maxsize=4)
def _fresh(pairs: Pairs) -> Pairs:
    return pairs.select(pairs.fresh_P)


def protocol_dialogues(pairs: Pairs) -> dict[str, np.ndarray]:
    """The dialogue of each rank that `ranks_by_protocol` returns, by targets."""
    return {"all": pairs.dialogue_P, "fresh": _fresh(pairs).dialogue_P}


def ranking_row(
    scores_IN: np.ndarray,
    pairs: Pairs,
    ks: Sequence[int] = KS,
    negatives: int = 99,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """One row of the tables: `{"all"|"fresh": {"full"|"sampled": {"hr@5": {"value", "low", "high"}, ...}}}`."""
    ranks = ranks_by_protocol(scores_IN, pairs, negatives, seed)
    dialogues = protocol_dialogues(pairs)
    return {
        targets: {name: summarise(r, dialogues[targets], ks, bootstrap, seed) for name, r in both.items()}
        for targets, both in ranks.items()
    }


def paired_difference(
    ranks_a_P: np.ndarray,
    ranks_b_P: np.ndarray,
    dialogue_P: np.ndarray,
    ks: Sequence[int] = KS,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Means of a minus b on the same pairs, their 95 % intervals and two-sided bootstrap p values.

    p is twice the smaller share of resamples on either side of zero, each with one added, so never 0.
    """
    a, b = gains(ranks_a_P, ks), gains(ranks_b_P, ks)
    gaps_PM = np.stack([a[name] - b[name] for name in a], 1)
    if not len(gaps_PM):
        return {name: dict.fromkeys(("value", "low", "high", "p"), float("nan")) for name in a}
    means_RM = resample(dialogue_P, bootstrap, seed).means(gaps_PM)
    out = {}
    for m, name in enumerate(a):
        sides = (means_RM[:, m] <= 0).sum(), (means_RM[:, m] >= 0).sum()
        p = min(1.0, 2 * (min(sides) + 1) / (bootstrap + 1))
        out[name] = {**interval(gaps_PM[:, m].mean(), means_RM[:, m]), "p": float(p)}
    return out


def success_rate_and_rdl(
    scores_IN: np.ndarray,
    pairs: Pairs,
    dialogues: Sequence[Dialogue],
    catalogue: Catalogue,
    exclude_named: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """What the seeker's own questionnaire says of the item ranked first.

    At each ranking instance the item ranked first earns 1 if the seeker said they liked it, else 0.5 if they said they
    had seen it, else 0 (nothing said, or not mentioned in the dialogue).
      sr: success rate, share of dialogues with ranking instances where any instance earns something.
      rdl: reward per dialogue length, a dialogue's sum over its number of messages, averaged over dialogues
        (Bernard & Balog 2025, arXiv 2510.05624; rewards as in Kostric & Balog, SIGIR '26).
      rdl-round: the same over the dialogue's number of ranking instances, in [0, 1].

    Args:
      exclude_named: the item ranked first is the best of those not named yet; otherwise repeating what the seeker said
        they like would be a success.

    Returns:
      `{"sr": {"value", "low", "high"}, "rdl": ..., "rdl-round": ...}`; NaN without feedback.
    """
    check_scores(scores_IN, pairs, dialogues)
    top_I = np.empty(len(scores_IN), np.int32)
    for start in range(0, len(scores_IN), _ROWS):
        scores_BN = np.array(scores_IN[start : start + _ROWS])
        if exclude_named:
            named_BX = pairs.named_IX[start : start + _ROWS]
            row_BX = np.broadcast_to(np.arange(len(scores_BN))[:, None], named_BX.shape)
            scores_BN[row_BX[named_BX >= 0], named_BX[named_BX >= 0]] = -np.inf
        top_I[start : start + _ROWS] = scores_BN.argmax(1)
    rewards: dict[int, list[float]] = {}
    for number, top in zip(pairs.dialogue_I.tolist(), top_I.tolist(), strict=True):
        feedback = dialogues[number].feedback
        if feedback:
            said = feedback.get(catalogue.items[top].item_id)
            reward = 0.0 if said is None else 1.0 if said.liked == 1 else 0.5 if said.seen == 1 else 0.0
            rewards.setdefault(number, []).append(reward)
    names = ("sr", "rdl", "rdl-round")
    if not rewards:
        return {name: dict.fromkeys(("value", "low", "high"), float("nan")) for name in names}
    earned_DM = np.array(
        [[float(max(r) > 0), sum(r) / len(dialogues[d].turns), sum(r) / len(r)] for d, r in rewards.items()]
    )
    means_RM = resample(np.arange(len(earned_DM)), bootstrap, seed).means(earned_DM)
    return {name: interval(earned_DM[:, m].mean(), means_RM[:, m]) for m, name in enumerate(names)}
