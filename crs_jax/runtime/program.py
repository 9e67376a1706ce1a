"""Flags of the programs beside `main`, their help, and how they end."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from crs_jax.runtime.arguments import command_line
from crs_jax.runtime.errors import InputError, LostProcessError, StorageError
from crs_jax.runtime.interruption import watched

HELP = ("-h", "--help", "--helpfull", "--helpshort")


def show_help(module: str, text: str | None) -> None:
    """Prints a program's help and ends it, where the command line asks for it; before imports that take seconds.

    Args:
      module: `__name__` of the program's module; only the one that is run acts.
      text: its docstring, which lists the flags, a line each.
    """
    if module == "__main__" and any(argument in HELP for argument in sys.argv[1:]):
        print((text or "").strip())
        sys.exit(0)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; names of flags are not guessed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """`InputError`."""
        raise InputError(f"{message}; --help lists the flags")


def in_utf8() -> None:
    """Has the program speak UTF-8 whatever the locale says: where Python does not, it begins again and does.

    Libraries take names of files as UTF-8 alone. What a stream cannot show is escaped, and nothing fails for it.
    """
    if sys.getfilesystemencoding() != "utf-8":
        again = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONUTF8": "1"})  # programs that it starts do too
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def leave(status: int) -> NoReturn:
    """Ends the process.

    At once after a signal or a failed disk: threads that go on compiling or saving crash in an interpreter that ends,
    and a lost process is waited for. Several processes that were interrupted say goodbye to each other.
    """
    sys.stdout.flush()
    alone = "jax" not in sys.modules or not sys.modules["jax"].distributed.is_initialized()
    if status in (StorageError.status, LostProcessError.status) or (status > 128 and alone):
        os._exit(status)
    sys.exit(status)


def run_program(main: Callable[[Sequence[str]], int | None]) -> int:
    """Calls `main` with the command line; exit status, and one line on stderr for what cannot be used."""
    in_utf8()
    try:
        with command_line(), watched():
            return main(sys.argv[1:]) or 0
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
