"""Imports a Python file that a flag names."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import types


def named_files(text: str) -> list[pathlib.Path]:
    """The files that a setting names, by commas, there or not."""
    return [pathlib.Path(os.path.expanduser(name)) for name in text.split(",") if name]


def import_file(path: pathlib.Path, prefix: str) -> types.ModuleType:
    """The module that the file holds, run anew; raises what it raises. `prefix` keeps its name apart from others'."""
    spec = importlib.util.spec_from_file_location(f"{prefix}_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module
