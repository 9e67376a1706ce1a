"""A run on Weights & Biases, online or (WANDB_MODE=offline) in its workdir, for those who ask for it.

A row of W&B is a line of `metrics.jsonl`. Rows cannot be taken back there, so a resumed stage, which gives the same
lines once more, does not send them again. `<workdir>/wandb/crs_jax.json` keeps the run's id and how far each stage
was sent when the workdir forgot a part of it; other settings of the stages are another run, which begins with the lines
that the workdir keeps. Deleting `<workdir>/wandb` begins a new run, too.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.identity import identity
from crs_jax.runtime.json_files import plain, read_json, write_json
from crs_jax.runtime.metrics import METRICS_LINES
from crs_jax.runtime.progress import say
from crs_jax.runtime.versions import read_log

SUMMARY = ("ranking", "text", "rewards", "success", "simulator")
Row = tuple[int, int]  # step, and 1 for a check, which follows what the step itself logs


def _wandb(config: ConfigDict) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            f"--config.wandb.project={config.wandb.project}: the package wandb cannot be imported ({error}); "
            "install the extra 'wandb' (`pip install wandb`), or leave the flag out"
        ) from None
    return wandb


def refuse_where_missing(config: ConfigDict) -> None:
    """`InputError` where W&B is asked for and the package is not there, or nobody is logged in."""
    if config.wandb.project:
        wandb = _wandb(config)
        if wandb.setup().settings.mode in (None, "online", "run"):
            _or_input_error(config, wandb, wandb.login)


def _or_input_error(asked: ConfigDict, wandb: Any, function: Any, **given: Any) -> Any:
    try:
        return function(**given)
    except wandb.Error as error:
        raise InputError(
            f"--config.wandb.project={asked.wandb.project}: {' '.join(str(error).split()).rstrip('.')}; "
            "log in with `wandb login`, or set WANDB_MODE=offline"
        ) from None


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested figures by their path: `ranking/ppo/fresh/full/hr@10`."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        value = value.get("value", value) if isinstance(value, Mapping) else value
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + str(name)] = float(value)
    return found


def _row(record: Mapping[str, Any]) -> Row:
    names = record.keys() - {"stage", "step"}
    return record["step"], int(all(name.startswith("validation/") for name in names))


def _sent(state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Row], int]:
    """The last row of each stage that was sent, and how many were in all: by the state, and what the workdir holds."""
    last = {stage: (step, check) for stage, (step, check) in state["sent"].items()}
    for record in records:
        stage, row = record["stage"], _row(record)
        last[stage] = max(last.get(stage, row), row)
    return last, max(state["rows"], len(records))


class WandbRun:
    """The workdir's run, opened by the first row; on process 0 alone.

    Args:
      workdir: of the run.
      config: the whole config; `config.wandb` says where the run goes.
    """

    def __init__(self, workdir: pathlib.Path, config: ConfigDict):
        self.workdir, self.config = workdir, config
        self._path = workdir / "wandb" / "crs_jax.json"
        settings = json.dumps(plain(identity(config, "ppo")), sort_keys=True)
        self._settings = hashlib.sha256(settings.encode()).hexdigest()[:16]
        self._run: Any = None
        self._rows = 0
        self._sent: dict[str, Row] = {}
        self._defined: set[str] = set()
        self._media: dict[str, Any] = {}

    def _state(self) -> dict[str, Any]:
        state = read_json(self._path) if self._path.exists() else {}
        return state if state.get("settings") == self._settings else {}

    def open(self) -> None:
        """Begins the run, or goes on with it; call it before the line of the first row is written."""
        if self._run is not None:
            return
        wandb, state, lines = _wandb(self.config), self._state(), read_log(self.workdir / METRICS_LINES)
        name, c = state.get("id") or secrets.token_hex(4), self.config.wandb
        options = wandb.Settings(console="off", silent=True, disable_code=True)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._run = _or_input_error(
            self.config, wandb, wandb.init, project=c.project, entity=c.entity or None, id=name, resume="allow",
            name=self.workdir.resolve().name, dir=str(self.workdir), config=plain(self.config), settings=options,
            reinit="create_new",
        )  # fmt: skip
        if state:
            self._sent, self._rows = _sent(state, lines)
        else:
            self._save(name, {}, 0)
            for line in lines:
                values = {name: value for name, value in line.items() if name not in ("stage", "step")}
                self.write(line["stage"], line["step"], values)
        where = (
            f"offline; `wandb sync {pathlib.Path(self._run.dir).parent}` sends it"
            if self._run.offline
            else self._run.url
        )
        say(f"wandb: run {name} of {c.project}, {where}")

    def _save(self, name: str, sent: Mapping[str, Row], rows: int) -> None:
        write_json(self._path, {"id": name, "settings": self._settings, "rows": rows, "sent": sent})

    def write(self, stage: str, step: int, values: Mapping[str, float | None]) -> None:
        """Sends one row, with the histograms and tables given since the last; nothing where it was sent before."""
        self.open()
        media, self._media = self._media, {}
        row = _row({"step": step, **values})
        if row <= self._sent.get(stage, (-1, 0)):
            return
        if stage not in self._defined:
            self._defined.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._sent[stage] = row
        finite = {f"{stage}/{name}": value for name, value in values.items() if value is not None}
        found = {f"{stage}/step": step, **finite, **{f"{stage}/{name}": value for name, value in media.items()}}
        self._run.log(found, step=self._rows, commit=True)
        self._rows += 1

    def histogram(self, name: str, values: np.ndarray) -> None:
        """A histogram that goes with the next row."""
        self._media[name] = _wandb(self.config).Histogram(values, num_bins=30)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table that goes with the next row."""
        self._media[name] = _wandb(self.config).Table(columns=list(columns), data=[list(row) for row in rows])

    def before_drop(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Notes how far each stage was sent, before the workdir forgets a part of `records`."""
        if state := self._state():
            self._save(state["id"], *_sent(state, records))

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Figures of the whole run: what `SUMMARY` names of `metrics.json`, without intervals."""
        self.open()
        self._run.summary.update(_numbers({name: figures[name] for name in SUMMARY if figures.get(name)}))

    def close(self, failed: bool = False) -> None:
        """Sends what is left."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None
