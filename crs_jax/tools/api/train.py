"""The Python API: a run from a config."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from crs_jax import flags as command_line
from crs_jax import pipeline
from crs_jax.runtime import arguments
from crs_jax.runtime.checkpoint import done_meta
from crs_jax.runtime.errors import InputError
from crs_jax.tools.api.run import Run, load, public
from crs_jax.tools.report.page import write_report


@public
def train(
    config: str | pathlib.Path | ConfigDict, workdir: str | pathlib.Path, overrides: Mapping[str, Any] | None = None
) -> Run:
    """Runs a config's stages as `python -m crs_jax.main` does; what is done is skipped. The run with its last policy.

    >>> run = crs_jax.train("configs/quickstart.py", workdir, overrides)  # doctest: +ELLIPSIS
    crs_jax, simulated...
    >>> run.models
    ('ppo', 'sft')

    Args:
      config: a file, with a variant after a colon (`configs/redial_ppo.py:scratch`), or a config.
      workdir: where the run leaves everything.
      overrides: settings by name, such as `{"ppo.iterations": 20, "seed": 1}`.

    Raises:
      InputError: a setting or the data cannot be used; names it.
    """
    folder = arguments.path("workdir", workdir)
    overrides = arguments.settings("overrides", overrides)
    changes = [f"--config.{name}={value}" for name, value in overrides.items()]
    if isinstance(config, ConfigDict):
        chosen, flag = _changed(config.copy_and_resolve_references(), overrides), "--config=CONFIG"
    else:  # as the command line, with all that it says of a name or a value
        flag = f"--config={arguments.path('config', config)}"
        chosen = command_line.parse(["train", flag, *changes], flags.FlagValues()).config
    pipeline.run(chosen, folder, write_report, [flag, f"--workdir={workdir}", *changes])
    return load(folder, "ppo" if done_meta(folder, "ppo") else "sft", trust_code=True)


def _changed(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    try:
        config.update_from_flattened_dict(dict(overrides))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"overrides: {' '.join(str(error).split())}") from None
    return config
