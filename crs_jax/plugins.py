"""Python files of a user's own that add to the registries.

`--plugins=FILE.py,OTHER.py` runs them before any other flag is read, so that what they add can be asked for as what is
built in is:

  from crs_jax.rl.algorithms import ALGORITHMS, Algorithm

  ALGORITHMS["mine"] = Algorithm(relative=...)

The run's config keeps their names, and what a run trains is bound to their contents. Whoever loads a run has to have
given the same files, or to trust it (`--trust-code`): nothing that a file names is run otherwise.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.python_file import import_file, named_files
from crs_jax.runtime.storage import is_file, sha256

FLAG = "--plugins"
_GIVEN = re.compile(r"--?(?:config\.)?plugins(?:=(.*))?", re.DOTALL)
_loaded: dict[pathlib.Path, str] = {}


def given(argv: Sequence[str]) -> str:
    """The files that a command line names, as they are written; the last flag counts."""
    found = ""
    for at, argument in enumerate(argv):
        if match := _GIVEN.fullmatch(argument):
            found = match[1] if match[1] is not None else "".join(argv[at + 1 : at + 2])
    return found


def files(text: str) -> list[pathlib.Path]:
    """Those that the setting names; `InputError` where one is not there."""
    paths = named_files(text)
    for path in paths:
        if not is_file(path):
            raise InputError(f"{FLAG}={text:.200}: there is no file {path!s:.200}")
    return paths


def load(text: str) -> None:
    """Runs the files, each once in a process.

    Raises:
      InputError: one is missing, has changed since it was run, or what running it raised.
    """
    for path in files(text):
        key, digest = path.resolve(), sha256(path)
        if key not in _loaded:
            try:
                import_file(path, "plugin")
            except Exception as error:
                raise InputError(f"{FLAG}={text}: {path}: {type(error).__name__}: {error}") from error
            _loaded[key] = digest
        elif _loaded[key] != digest:
            raise InputError(f"{FLAG}={text}: {path} has changed since this process ran it; start again")


def require(text: str, source: pathlib.Path, trusted: bool) -> None:
    """Has the files that a run's config names, `source`; runs them where it is trusted.

    Raises:
      InputError: one was not given to this process, and the run is not trusted.
    """
    if trusted:
        load(text)
        return
    for path in named_files(text):
        if path.resolve() not in _loaded:
            raise InputError(
                f"{source}: its config names Python code, plugins={path!s:.200}; read it, and give it by {FLAG}, or "
                "give --trust-code if you trust it"
            )


def fingerprints(text: str) -> dict[str, str]:
    """What a run that uses them is made from: a sum over their contents; nothing without plugins."""
    return {"set of plugins": "-".join(sha256(path)[:16] for path in files(text))} if text else {}
