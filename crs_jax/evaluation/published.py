"""Published figures, printed beside a run's own. Never an input to anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
    """One system's row in a paper.

    Attributes:
      system: its name.
      metrics: by the names of this package (`hr@1` is the paper's Recall@1), on a scale of 0 to 1.
      source: paper and what it was measured on.
    """

    system: str
    metrics: Mapping[str, float]
    source: str


_FRESH = (
    "Kostric & Balog, SIGIR '26: ReDial test, targets not named earlier, full catalogue, full training set, "
    "one protocol for all systems"
)
_RLHF = "Yang et al. 2025, arXiv 2508.05289: ReDial; candidate set and k of the context not stated"


def _recall(system: str, **by_k: float) -> Published:
    return Published(system, {f"hr@{k[1:]}": value for k, value in by_k.items()}, _FRESH)


REDIAL_FRESH_FULL = (
    _recall("KBRD", r1=0.017, r10=0.148, r50=0.300),
    _recall("KGSF", r1=0.016, r10=0.147, r50=0.327),
    _recall("UniCRS", r1=0.024, r10=0.180, r50=0.335),
    _recall("ECR", r1=0.026, r10=0.181, r50=0.337),
    _recall("MESE", r1=0.025, r10=0.159, r50=0.361),
    _recall("PECRS", r1=0.022, r10=0.143, r50=0.341),
    _recall("ReFICR (7B)", r1=0.018, r10=0.213, r50=0.465),
    _recall("MESE, GPT2-medium", r1=0.027, r50=0.371),
)

REDIAL_SUCCESS = (
    Published("UniCRS", {"sr": 0.048, "rdl": 0.030}, _FRESH),
    Published("PECRS", {"sr": 0.052, "rdl": 0.047}, _FRESH),
    Published("ReFICR (7B)", {"sr": 0.053, "rdl": 0.053}, _FRESH),
)

REDIAL_RLHF = (
    Published("SFT", {"hr@5": 0.425, "ndcg@5": 0.415, "bleu-4": 0.112}, _RLHF),
    Published("RLHF", {"hr@5": 0.560, "ndcg@5": 0.555, "bleu-4": 0.143}, _RLHF),
)


def published_ranking(dataset: str) -> tuple[Published, ...]:
    """Rows to print beside `fresh`, `full`; empty for a corpus without any."""
    return REDIAL_FRESH_FULL if dataset == "redial" else ()


def published_rows(dataset: str) -> dict[str, dict[str, Any]]:
    """What `metrics.json` holds under `published`, empty for a corpus without any.

    By system: `source`, `fresh.full.<metric>`, and `sr` and `rdl` where known. The rows of Yang et al. are not among
    them: without the candidate set they fit neither protocol.
    """
    out: dict[str, dict[str, Any]] = {}
    for row in published_ranking(dataset):
        out[row.system] = {"source": row.source, "fresh": {"full": dict(row.metrics)}}
    for row in REDIAL_SUCCESS if out else ():
        out[row.system] |= dict(row.metrics)
    return out
