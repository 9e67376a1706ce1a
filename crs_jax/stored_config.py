"""Settings that a file holds: checked as those that are typed."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common
from crs_jax import plugins
from crs_jax.config import validate_values
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.versions import read_settings


def stored_config(found: Any, path: pathlib.Path) -> ConfigDict:
    """The config that `found`, an object of the JSON file `path`, says.

    A setting that it lacks, since an older version wrote it, has its default. What settings name is neither looked for
    nor run.

    Raises:
      InputError: a setting is unknown, of another kind or cannot work; names file and setting.
    """
    config = ConfigDict(_filled(common.settings().defaults(), found, path, "config"))
    try:
        validate_values(config)
    except InputError as error:
        raise InputError(f"{path}: {' '.join(str(error).split()).removeprefix('--')}") from None
    return config


def read_config(workdir: pathlib.Path, trusted: bool = False) -> ConfigDict:
    """The config of a run, from its folder.

    Raises:
      InputError: as `stored_config`; there is none; it is of a version that is not read; or it names plugins that
        this process did not get, and the run is not `trusted`.
    """
    path = workdir / "config.json"
    found = read_settings(path)
    named = found.get("plugins", "")
    plugins.require(named if isinstance(named, str) else "", path, trusted)
    config = stored_config(found, path)
    reward = found.get("reward", {})
    made_with, known = (set(group.get("weights", {})) for group in (reward, common.settings().defaults()["reward"]))
    if made_with != known:
        names = " and ".join(sorted(made_with ^ known))
        raise InputError(f"{path}: this process has plugins with other signals ({names}); start a new one")
    return config


def _filled(known: dict[str, Any], found: Any, path: pathlib.Path, name: str) -> dict[str, Any]:
    """The known settings with the values found."""
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: {name} holds a {type(found).__name__}, expected an object")
    filled = dict(known)
    for key, value in found.items():
        if key not in known:
            raise InputError(f"{path}: {name}.{key:.200}: there is no such setting; another version wrote it")
        group = isinstance(known[key], dict)
        filled[key] = _filled(known[key], value, path, f"{name}.{key}") if group else value
    return filled
