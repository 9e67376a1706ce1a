"""What is measured: cells, written `PART:SIZE[:CxG[:P+R[:SETTING=VALUE,...]]]`.

`rollout:345m:32x8:384+64` samples 8 replies of 64 tokens to each of 32 contexts of 384 tokens. What is left out is the
config's. Of `sft` the third field is rows x tokens and there is no fourth. Settings are those of the config, without
`--config.`: `update:345m:64x1:192+64:model.remat=false`. TokenMasks on torch begin with `torch-`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

from crs_jax.runtime.errors import InputError

PARTS = ("rollout", "scoring", "update", "iteration", "sft")
TORCH_PARTS = ("torch-rollout", "torch-scoring", "torch-update", "torch-iteration", "torch-sft")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
      part: of `PARTS` or `TORCH_PARTS`, or `peaks`.
      size: variant of the config file.
      batch: contexts and group (`sft`: rows and tokens); None: the config's.
      lengths: tokens of context and reply; None: the config's.
      settings: (name, value) of the config.
    """

    part: str
    size: str
    batch: tuple[int, int] | None = None
    lengths: tuple[int, int] | None = None
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def torch(self) -> bool:
        """Whether torch does the work."""
        return self.part.startswith("torch-")

    @property
    def work(self) -> str:
        """The part, whoever does it."""
        return self.part.removeprefix("torch-")

    @property
    def flags(self) -> list[str]:
        """The cell as settings of its config."""
        found = dict(self.settings)
        if self.batch is not None:
            names = ("sft.rows", "sft.row_tokens") if self.work == "sft" else ("ppo.contexts", "ppo.group")
            found |= dict(zip(names, map(str, self.batch), strict=True))
            if self.work != "iteration":
                found["ppo.minibatches"] = "1"
        if self.lengths is not None:
            found |= dict(zip(("data.context_tokens", "data.reply_tokens"), map(str, self.lengths), strict=True))
        return [f"--config.{name}={value}" for name, value in found.items()]

    def __str__(self) -> str:
        fields = [self.part, self.size]
        fields.append("x".join(map(str, self.batch)) if self.batch else "")
        fields.append("+".join(map(str, self.lengths)) if self.lengths else "")
        fields.append(",".join(f"{name}={value}" for name, value in self.settings))
        return ":".join(fields).rstrip(":")


def parse(text: str) -> Cell:
    """The cell that a text names; `InputError` where it is none."""
    part, size, batch, lengths, settings, *rest = [*text.split(":"), "", "", "", ""][: max(5, text.count(":") + 1)]
    if part not in (*PARTS, *TORCH_PARTS, "peaks") or rest or not size:
        raise InputError(f"{text}: write PART:SIZE:CxG:P+R:SETTING=VALUE; parts are {', '.join(PARTS)}, torch-PART")
    pairs = []
    for value, sign in ((batch, "x"), (lengths, "+")):
        if value and not re.fullmatch(rf"[1-9]\d*[{sign}][1-9]\d*", value):
            raise InputError(f"{text}: {value!r} is not two whole numbers with {sign!r} between them")
        pairs.append(tuple(int(number) for number in value.split(sign)) if value else None)
    given = [setting.partition("=") for setting in settings.split(",") if setting]
    if not all(sign for _, sign, _ in given):
        raise InputError(f"{text}: {settings!r} is not SETTING=VALUE,SETTING=VALUE")
    return Cell(part, size, pairs[0], pairs[1], tuple((name, value) for name, _, value in given))  # type: ignore[arg-type]


def product(parts: Sequence[str], sizes: Sequence[str], rows: Sequence[str], lengths: Sequence[str]) -> list[Cell]:
    """All combinations; `torch` among the parts adds the same cells on torch, after those of their size."""
    own = [part for part in parts if part != "torch"]
    cells = []
    for size in sizes:
        texts = [f"{p}:{size}:{r}:{n}" for p, r, n in itertools.product(own, rows or [""], lengths or [""])]
        here = list(dict.fromkeys(parse(_plain(text)) for text in texts))
        cells += here
        if "torch" in parts:
            cells += [dataclasses.replace(cell, part=f"torch-{cell.part}") for cell in here]
    return cells


def _plain(text: str) -> str:
    """Batches and lengths of replies mean nothing to `sft`, which keeps the config's."""
    part, size, *_ = text.split(":")
    return f"{part}:{size}" if part == "sft" else text.rstrip(":")


SMALL = [f"{part}:tiny" for part in PARTS]

CPU = [
    *("rollout:16m", "sft:16m", "iteration:16m", "scoring:16m", "update:16m:4x1"),
    *("torch-rollout:16m", "torch-sft:16m", "torch-iteration:16m", "torch-scoring:16m", "torch-update:16m:4x1"),
    *("iteration:16m:32x1", "iteration:16m:64x1", "iteration:16m:16x1:96+32"),
    *("rollout:16m:64x1", "rollout:16m:16x4", "rollout:16m:16x1:160+48"),
    *("rollout:scratch", "scoring:scratch", "update:scratch:4x1", "iteration:scratch", "sft:scratch"),
    *("update:16m:4x1::model.layers=24", "rollout:16m:16x1::model.layers=24"),
]

GPU = [
    *("rollout:345m:256x1:384+64", "update:345m:64x1:192+64:model.remat=false", "update:345m:64x1:192+64"),
    *("iteration:345m", "rollout:345m", "update:345m:8x8", "scoring:345m", "sft:345m"),
    *("torch-rollout:345m:256x1:384+64", "torch-update:345m:64x1:192+64", "torch-iteration:345m", "torch-sft:345m"),
    *("update:345m:64x1:192+64:model.layers=4", "iteration:345m:16x8", "iteration:345m:64x8"),
    *("rollout:345m:64x1:384+64", "rollout:345m:512x1:384+64", "rollout:345m:256x1:128+64"),
    *("iteration:124m", "rollout:124m", "update:124m:8x8", "scoring:124m", "sft:124m"),
    *("torch-rollout:124m", "torch-iteration:124m", "torch-sft:124m"),
    *("iteration:774m", "rollout:774m", "update:774m:8x8", "scoring:774m", "sft:774m"),
    *("iteration:124m:16x8", "iteration:124m:64x8", "iteration:124m:32x8:192+64"),
    *("iteration:scratch", "rollout:scratch", "update:scratch:4x1", "scoring:scratch", "sft:scratch"),
]
"""The most important first: what does not fit the budget is left out from the end."""


def named(name: str, torch: bool) -> list[Cell]:
    """The plan small, cpu or gpu, without torch's cells where there is no torch."""
    plans = {"small": [*SMALL, *(f"torch-{cell}" for cell in SMALL)], "cpu": CPU, "gpu": GPU}
    return [cell for cell in map(parse, plans[name]) if torch or not cell.torch]
