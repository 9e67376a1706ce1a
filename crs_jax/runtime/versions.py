"""How what a run leaves is laid out: one number, in every checkpoint, config, metrics file and exported folder.

It counts layouts, not releases. Add one to `VERSION` where an older file cannot be taken as it is. Where names alone
have changed say so in `RENAMED`, and older files are still read; otherwise raise `FIRST` too, and they are refused.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import numbered_json_lines, plain, read_json, write_json, write_json_lines

VERSION = 3
FIRST = 2  # the oldest that is read
UNSTATED = 2  # of a config or metrics file that says none; checkpoints called it `layout` then
KEY = "format"


class Renamed(NamedTuple):
    """Names of one version and what the next calls them.

    Attributes:
      settings: `section.field`.
      parameters: a part of the path of a model's parameters, whole names between slashes: `query/near_kernel`.
    """

    settings: Mapping[str, str] = {}
    parameters: Mapping[str, str] = {}


RENAMED: dict[int, Renamed] = {}
"""By the version that had the old names. An entry stays for good: fingerprints rest on the oldest names."""


def check(version: Any, path: pathlib.Path | str) -> int:
    """The version that a file states; `InputError` where it is none, or none that is read."""
    if type(version) is not int or version < 1:
        raise InputError(f"{path}: {KEY} is {version!r:.80}, expected a whole number from 1; the file is damaged")
    if not FIRST <= version <= VERSION:
        raise InputError(
            f"{path}: written in format {version}, and this release of crs_jax reads {FIRST} to {VERSION}; train or "
            "export again into another folder, or use the release that wrote it"
        )
    return version


def read_with_version(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The object in a JSON file, without its version, and that; `InputError` as `read_json` and `check`."""
    found = read_json(path)
    return found, check(found.pop(KEY, UNSTATED), path)


def read_versioned(path: pathlib.Path) -> dict[str, Any]:
    """The object alone; see `read_with_version`."""
    return read_with_version(path)[0]


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """The settings in a config file, nested, by today's names; otherwise as `read_with_version`."""
    return settings_now(*read_with_version(path))


def write_versioned(path: pathlib.Path, value: Any) -> None:
    """As `write_json` does, with the version."""
    write_json(path, {KEY: VERSION, **plain(value)})


def numbered_log(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a log, less the first, which states the version; no file reads as none.

    `InputError` as `numbered_json_lines` and `check`, and for a version elsewhere.
    """
    for place, (number, record) in enumerate(numbered_json_lines(path)):
        if KEY not in record:
            yield number, record
        elif place or len(record) > 1:
            raise InputError(f"{path}:{number}: {KEY} belongs in the first line, and alone; the file is damaged")
        else:
            check(record[KEY], f"{path}:{number}")


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """What was logged; see `numbered_log`."""
    return [record for _, record in numbered_log(path)]


def write_log(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """As `write_json_lines` does, behind a line with the version."""
    write_json_lines(path, [{KEY: VERSION}, *records])


def settings_now(found: Any, version: int) -> Any:
    """Settings of an older version by their names of today, changed in place.

    Args:
      found: nested objects, as a config file has them, or flat by dotted names; anything else stays as it is.
      version: that wrote them.
    """
    for names in _since(version):
        for old, new in names.settings.items() if isinstance(found, dict) else ():
            if old in found:
                found[new] = found.pop(old)
            else:
                _move(found, old.split("."), new.split("."))
    return found


def _move(found: dict[str, Any], old: list[str], new: list[str]) -> None:
    """Moves what stands at a path of nested objects; sections that it leaves empty go."""
    sections = [found]
    for name in old[:-1]:
        section = sections[-1].get(name)
        if not isinstance(section, dict):
            return
        sections.append(section)
    if old[-1] not in sections[-1]:
        return
    value = sections[-1].pop(old[-1])
    for section, name in zip(sections[-2::-1], old[-2::-1], strict=True):
        if not section[name]:
            del section[name]
    for name in new[:-1]:
        found = found.setdefault(name, {})
        if not isinstance(found, dict):
            return  # whoever reads the settings refuses such a section
    found[new[-1]] = value


def path_now(path: str, version: int) -> str:
    """Today's path of an older version's parameter."""
    for names in _since(version):
        for old, new in names.parameters.items():
            path = _replaced(path, old, new)
    return path


def parameters_now(tree: Any, version: int) -> Any:
    """A tree of an older version with today's names in its dicts."""
    return _renamed(tree, lambda path: path_now(path, version)) if _since(version) else tree


def parameters_then(tree: Any, version: int = UNSTATED) -> Any:
    """A tree of today with an older version's names in its dicts."""
    pairs = [pair for names in _since(version) for pair in names.parameters.items()]

    def path_then(path: str) -> str:
        for old, new in reversed(pairs):
            path = _replaced(path, new, old)
        return path

    return _renamed(tree, path_then) if pairs else tree


def _since(version: int) -> list[Renamed]:
    return [RENAMED[number] for number in range(version, VERSION) if number in RENAMED]


def _replaced(path: str, old: str, new: str) -> str:
    return f"/{path}/".replace(f"/{old}/", f"/{new}/")[1:-1]


def _renamed(tree: Any, rename: Callable[[str], str]) -> Any:
    """Dicts in a tree, whatever else it is made of, with other paths."""

    def one(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        renamed: dict[str, Any] = {}
        for path, value in _paths(node):
            *folders, last = rename(path).split("/")
            at = renamed
            for folder in folders:
                at = at.setdefault(folder, {})
            at[last] = _renamed(value, rename)
        return renamed

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, dict))


def _paths(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
