"""Where a checkpoint of a decoder is, on disk or on the hub, and the tensors in its files."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
from safetensors import safe_open

from crs_jax.models.decoder import DECODERS
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.storage import is_folder

FLAG = "--config.model.init"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def revisions() -> dict[str, tuple[str, str]]:
    """Repository and commit of the hub's checkpoints that have a short name, by that and by the repository."""
    known = [place for entry in DECODERS.values() for place in entry.config.revisions.items()]
    return {name: at for short, at in known for name in (short, at[0])}


def hub_id(source: str) -> tuple[str, str]:
    """Repository and revision of a name in `revisions` or of `owner/name@revision`; `InputError` for other names."""
    known = revisions()
    repository, revision = known.get(source, (source, ""))
    if not revision:
        repository, _, revision = source.partition("@")
        if not revision or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            short = ", ".join(name for name in known if "/" not in name)
            raise InputError(
                f"{FLAG}={source}: no such folder, and a hub id needs its revision: owner/name@commit, or {short}"
            )
    return repository, revision


def find(source: str) -> pathlib.Path:
    """Folder of a checkpoint: `source` itself where it is a folder, else the hub's snapshot of it.

    Args:
      source: a folder, a name in `revisions`, or `owner/name@revision`.

    Raises:
      InputError: neither a folder nor on the hub, or a hub id without a revision.
    """
    if is_folder(source):
        return pathlib.Path(source).expanduser()
    repository, revision = hub_id(source)
    from huggingface_hub import snapshot_download

    try:
        wanted = ["config.json", "model*.safetensors", INDEX]
        return pathlib.Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # offline, no such repository or revision, no space, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{FLAG}={source}: not a folder here, and not to be had from the hub ({reason})") from None


def read_arrays(folder: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
    """All tensors of a folder by name, without the prefix."""
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX}: not an index of safetensors files ({error!r})") from None
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {pickled[0]}, a pickle, which can run code and is refused" if pickled else "no weights"
        raise InputError(f"{folder}: {found}; {SINGLE} is needed (save_pretrained writes it)")
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    arrays[key.removeprefix(prefix)] = file.get_tensor(key)
        except Exception as error:  # SafetensorError, FileNotFoundError
            raise InputError(f"{folder / name}: not readable as safetensors ({error!s:.200})") from None
    return arrays
