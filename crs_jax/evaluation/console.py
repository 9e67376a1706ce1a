"""What a run's figures say on the console."""

from __future__ import annotations

from typing import Any

import numpy as np

from crs_jax.evaluation.lengths import print_lengths
from crs_jax.runtime.progress import print_table, say


def print_held_out(found: dict[str, Any]) -> None:
    """The reward model's table on the console."""
    more = {"spearman": "spearman", "pearson-by-place": "by place", "ceiling": "ceiling", "slope": "slope",
            "intercept": "intercept", "ece": "ece", "ece-chance": "by chance"}  # fmt: skip
    columns = ["signal", "pearson", "95 %", *more.values(), "n"]
    rows = []
    for name, v in found.items():
        interval = " .. ".join(_shown(v, f"pearson-{end}") for end in ("low", "high"))
        rows.append([name, _shown(v, "pearson"), interval, *(_shown(v, figure) for figure in more), v["n"]])
    print_table("reward model, validation replies", columns, rows)
    for name, v in found.items():
        say(f"noise ceiling of {name}: {v['ceiling-from']}")


def headline(metrics: dict[str, Any]) -> None:
    """The few figures a run is read for."""
    ranking = metrics.get("ranking", {})
    columns = ["row", "hr@1", "hr@10", "hr@50", "ndcg@10", "mrr@10"]
    for targets in ("fresh", "all"):
        rows = [
            [row, *(_shown(found[targets]["full"], column, 4) for column in columns[1:])]
            for row, found in ranking.items()
        ]
        if rows:
            print_table(f"{targets} targets, full catalogue", columns, rows)
    print_lengths(metrics.get("by_length", {}))
    replies = metrics.get("text", {})
    if replies:
        people = next(iter(replies.values()))["recommends-reference"]
        columns = ["row", "recommend", "bleu-4", "perplexity"]
        rows = [[row, *(_shown(v, k) for k in ("recommends", "bleu-4", "perplexity"))] for row, v in replies.items()]
        print_table("replies, test", columns, [["people", f"{people:.3f}", "-", "-"], *rows])
    reached = metrics.get("optimum", {})
    if reached:
        say(
            f"PPO went {_shown(reached, 'share', 2)} of the way from sft to optimum: reward of first items "
            f"{_shown(reached, 'reward-sft')}, {_shown(reached, 'reward-ppo')}, {_shown(reached, 'reward-optimum')}, "
            f"at a KL of {_shown(reached, 'kl', 2)} nats"
        )
    liked = metrics.get("liked", {})
    if liked:
        shown = {row: [_shown(v, k) for k in ("auc", "auc-low", "auc-high")] for row, v in liked.items()}
        found = ", ".join(f"{row} {auc} ({low} .. {high})" for row, (auc, low, high) in shown.items())
        say(f"AUC of liked over disliked proposals: {found}")
    for text in metrics.get("health", {}).values():
        say(f"warning: {text}")
    s = metrics.get("simulator", {})
    if s.get("difference") is not None:
        say(
            f"true utility: sft {_shown(s, 'utility_sft', 4)}, ppo {_shown(s, 'utility_ppo', 4)}, difference "
            f"{_shown(s, 'difference', 4)} (95 % {_shown(s, 'low', 4)} .. {_shown(s, 'high', 4)})"
        )


def _shown(figures: dict[str, Any], name: str, digits: int = 3) -> str:
    value = figures.get(name)
    value = value.get("value") if isinstance(value, dict) else value
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
