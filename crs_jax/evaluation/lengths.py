"""Ranking by how much was said before: whether a policy loses its way in long dialogues, past the window it reads.

Targets named late are harder or easier in themselves, so figures of one row by length mix that with the policy. The
paired difference of two policies on the same pairs does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crs_jax.data.instances import Instance
from crs_jax.evaluation.pairs import Pairs
from crs_jax.evaluation.ranking import paired_difference, summarise
from crs_jax.runtime.progress import print_table

BUCKETS = {"1-3": (1, 3), "4-6": (4, 6), "7-10": (7, 10), "11+": (11, None)}  # utterances before the message


def buckets(before_P: np.ndarray, window: int) -> dict[str, np.ndarray]:
    """Masks of `BUCKETS`, of what lies within the window of k utterances, and of what has more before it."""
    masks = {
        name: (before_P >= low) & (before_P <= (np.inf if high is None else high))
        for name, (low, high) in BUCKETS.items()
    }
    return {**masks, "within-window": before_P <= window, "beyond-window": before_P > window}


def by_length(
    instances: Sequence[Instance],
    pairs: Pairs,
    ranks: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    window: int,
    ks: Sequence[int],
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """HR@k and NDCG@k in the whole catalogue by the number of utterances before the message.

    Args:
      instances: what was ranked.
      pairs: of them.
      ranks: of each policy, by row, as `ranks_by_protocol` returns them.
      window: k, the utterances that the policy reads.
      ks: cutoffs.
      bootstrap: resamples of a bucket's dialogues.
      seed: of these.

    Returns:
      `{"window": k, "fresh": {bucket: {row: {"hr@5": {"value", "low", "high"}, ...}, "n": pairs}}, "all": ...}`; with
      `sft` and `ppo` among the rows also `ppo-sft`, paired, each with "p". A bucket without pairs is left out.
    """
    turn_I = np.array([instance.turn for instance in instances])
    out: dict[str, Any] = {"window": window}
    for targets, some in (("fresh", pairs.select(pairs.fresh_P)), ("all", pairs)):
        table = {}
        for name, in_P in buckets(turn_I[some.instance_P], window).items():
            if not in_P.any():
                continue
            group_P, rank_P = some.dialogue_P[in_P], {row: r[targets]["full"][in_P] for row, r in ranks.items()}
            rows = {row: summarise(r, group_P, ks, bootstrap, seed) for row, r in rank_P.items()}
            if {"sft", "ppo"} <= rank_P.keys():
                rows["ppo-sft"] = paired_difference(rank_P["ppo"], rank_P["sft"], group_P, ks, bootstrap, seed)
            kept = {row: {m: v for m, v in found.items() if not m.startswith("mrr")} for row, found in rows.items()}
            table[name] = {**kept, "n": int(in_P.sum())}
        out[targets] = table
    return out


def print_lengths(found: Mapping[str, Any], measures: Sequence[str] = ("hr@10", "ndcg@10")) -> None:
    """What `by_length` found of fresh targets, on the console; nothing where it found none."""
    table = found.get("fresh", {})
    for measure in measures:
        rows = list(dict.fromkeys(row for b in table.values() for row, v in b.items() if row != "n" and measure in v))
        if rows:
            lines = [
                [name, *(_cell(b.get(row, {}).get(measure), row) for row in rows), b["n"]] for name, b in table.items()
            ]
            title = f"{measure} by utterances before, fresh targets, full catalogue, window of {found['window']}"
            print_table(title, ["utterances", *rows, "n"], lines)


def _cell(figure: Mapping[str, float] | None, row: str) -> str:
    if figure is None:
        return "-"
    sign = "+" if "-" in row else ""
    return f"{figure['value']:{sign}.4f} ({figure['low']:{sign}.3f} .. {figure['high']:{sign}.3f})"
