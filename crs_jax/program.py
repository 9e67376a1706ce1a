"""Flags of the programs beside `main`, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from crs_jax.arguments import command_line
from crs_jax.errors import InputError, StorageError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; names of flags are not guessed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """`InputError`."""
        raise InputError(f"{message}; --help lists the flags")


def run_program(main: Callable[[Sequence[str]], None]) -> int:
    """Calls `main` with the command line; exit status, and one line on stderr for what cannot be used."""
    try:
        with command_line():
            main(sys.argv[1:])
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return StorageError.status
    return 0
