"""Raw records of a corpus: read through `datasets`, checked field by field, every fault named by file and line."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import MENTION, Dialogue
from crs_jax.runtime.errors import InputError

T = TypeVar("T")
KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "a list": (list,),
    "an object": (dict,),
    "an id": (str, int),
    "a whole number": (int,),
}
_SURROGATE = re.compile("[\ud800-\udfff]")


class RecordError(ValueError):
    """A malformed record; the message names the field, what was found and what was expected."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One raw record.

    Attributes:
      where: the file (with its folder) and line, for error messages.
      source: the same without the folder, kept in the dialogue.
      value: the line's bytes, or a row of a dataset as a mapping.
    """

    where: str
    source: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a loader makes of a corpus' files, before validation is cut off.

    `test` is empty where the corpus has no test part of its own; `notes` are lines for the person who runs it.
    """

    catalogue: Catalogue
    train: list[Dialogue]
    test: list[Dialogue]
    skipped: list[str]
    notes: tuple[str, ...] = ()


class Faults:
    """What to do with a malformed record: stop at the first, or skip and list them."""

    def __init__(self, on_error: str) -> None:
        if on_error not in ("raise", "skip"):
            raise InputError(f"config.data.on_error is {on_error!r}: set it to 'raise' or 'skip'")
        self.skip = on_error == "skip"
        self.skipped: list[str] = []

    def attempt(self, where: str, parse: Callable[[], T]) -> T | None:
        """The parsed record; None for a malformed one that is skipped; else `InputError`."""
        try:
            return parse()
        except RecordError as error:
            said = clipped(str(error))
            if not self.skip:
                raise InputError(f"{where}: {said}: correct it, or set config.data.on_error=skip") from None
            self.skipped.append(f"{where}: {said}")
            return None


def clipped(message: str, most: int = 400) -> str:
    """A message whose middle is left out where a value in it is long."""
    return message if len(message) <= most else f"{message[: most // 2]} ... {message[-most // 3 :]}"


def read_lines(path: pathlib.Path, scratch: pathlib.Path) -> Iterator[Record]:
    """The lines of a file that are not blank, as bytes, from an Arrow table memory-mapped in `scratch`.

    Lines are read as bytes, never as inferred JSON: `movieMentions` and the questionnaires are keyed by movie, and
    schema inference would merge thousands of keys into one struct.
    """
    return _read(path, scratch, _numbered_lines)


def read_csv_column(path: pathlib.Path, column: str, scratch: pathlib.Path) -> Iterator[Record]:
    """One column of a CSV file with a header, as bytes, each by the line its row begins on."""
    _present(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = next(csv.reader(file), [])
    if column not in header:
        raise InputError(f"{path}:1: found columns {header}, expected a column {column!r}")
    return _read(path, scratch, _numbered_cells, index=header.index(column))


def _present(path: pathlib.Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file: check config.data.dir")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty: put the corpus' records into it")


def _read(path: pathlib.Path, scratch: pathlib.Path, rows: Callable[..., Any], **options: Any) -> Iterator[Record]:
    import datasets

    _present(path)
    table = datasets.Dataset.from_generator(
        rows,
        features=datasets.Features({"number": datasets.Value("int64"), "line": datasets.Value("large_binary")}),
        gen_kwargs={"path": str(path), **options},
        cache_dir=str(scratch),
    )
    for row in table:
        if row["line"].strip():
            yield Record(f"{path}:{row['number']}", f"{path.name}:{row['number']}", row["line"])


def _numbered_lines(path: str) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            yield {"number": number, "line": line}


def _numbered_cells(path: str, index: int) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 28)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        number = 0
        for row in reader:
            if number and row:
                cell = row[index] if index < len(row) else "(the row ends before this column)"
                yield {"number": number, "line": cell.encode("utf-8", "surrogateescape")}
            number = reader.line_num + 1


def read_hub(hub: str, revision: str, scratch: pathlib.Path) -> dict[str, list[Record]]:
    """The splits of a dataset repository (or a local folder in that layout) through `datasets.load_dataset`."""
    import datasets
    from huggingface_hub import constants

    local = pathlib.Path(hub).is_dir()
    try:
        if local:
            splits = datasets.load_dataset(hub, cache_dir=str(scratch))
        else:
            splits = datasets.load_dataset(hub, revision=revision)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"config.data.hub={hub!r} (revision {revision!r}) cannot be loaded ({type(error).__name__}: {reason}): "
            "check the name and the network, or set config.data.dir to a folder with the corpus' files"
        ) from None
    read = {pathlib.Path(file["filename"]).parent.name for rows in splits.values() for file in rows.cache_files}
    commit = "" if local else _commit(hub, revision)
    if not local and (read - {commit} if commit else constants.HF_HUB_OFFLINE):
        # where the hub does not answer `datasets` takes what it read last
        raise InputError(
            f"config.data.hub={hub!r}: the hub does not answer, and only another revision than {revision!r} is on this "
            "machine: check the network, or set config.data.dir to a folder with the corpus' files"
        )
    return {
        str(name): [Record(f"{hub}/{name}:{n}", f"{name}:{n}", row) for n, row in enumerate(rows, 1)]
        for name, rows in splits.items()
    }


def in_cache(hub: str, revision: str) -> bool:
    """Whether `read_hub` can do without the hub: `datasets` has read this revision of the repository to its end."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = hub.rpartition("/")
    folder = "___".join([*filter(None, [owner]), camelcase_to_snakecase(name)])
    commit = _commit(hub, revision)
    return bool(commit) and any((pathlib.Path(config.HF_DATASETS_CACHE) / folder).glob(f"*/*/{commit}/"))


def _commit(hub: str, revision: str) -> str:
    """The commit that a revision named when it was last fetched here; empty where it never was."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    path = pathlib.Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub, repo_type="dataset") / "refs" / revision
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def decode(value: Any) -> Any:
    """The JSON value of a line of bytes; a dataset's row is given back as it is."""
    if not isinstance(value, bytes):
        return value
    try:
        return json.loads(value.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError(f"byte {value[error.start]:#04x} at column {error.start + 1} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise RecordError(f"not one complete JSON value ({reason}); the line may be cut off") from None


def decode_object(value: Any) -> Mapping[str, Any]:
    """As `decode`, for a line that must hold an object."""
    record = decode(value)
    if not isinstance(record, Mapping):
        raise RecordError(f"found {describe(record)}, expected an object")
    return record


def describe(value: Any) -> str:
    """A value as shown in an error message: its JSON type and, if short, itself."""
    names = {type(None): "null", str: "text", bool: "true/false", int: "number", float: "number", list: "a list"}
    kind = names.get(type(value), "an object")
    shown = ascii(value)
    return f"{kind} {shown}" if value is not None and len(shown) <= 40 else kind


def field(record: Any, name: str, kind: str, at: str = "") -> Any:
    """`record[name]`, which must be of one of `KINDS`; `at` is the path of `record` for the error message."""
    if not isinstance(record, Mapping):
        raise RecordError(f"field {at.rstrip('.')!r}: found {describe(record)}, expected an object")
    if name not in record:
        raise RecordError(f"field '{at}{name}' is missing, expected {kind}")
    return check(record[name], kind, f"{at}{name}")


def identity(record: Any, name: str, at: str = "") -> str:
    """The id `record[name]`, text or number, as text."""
    value = clean(str(field(record, name, "an id", at)))
    if not value:
        raise RecordError(f"field '{at}{name}': found empty text, expected an id")
    return value


def check(value: Any, kind: str, path: str) -> Any:
    """`value`, which must be of one of `KINDS`; `path` names it in the error message."""
    if isinstance(value, bool) or not isinstance(value, KINDS[kind]):
        raise RecordError(f"field {path!r}: found {describe(value)}, expected {kind}")
    return value


def decode_list(value: Any) -> list[Any]:
    """As `decode`, for a line that must hold a list."""
    record = decode(value)
    if not isinstance(record, list):
        raise RecordError(f"found {describe(record)}, expected a list")
    return record


def texts(record: Any, name: str, at: str = "") -> list[str]:
    """The optional list of texts `record[name]`; empty where it is missing or null."""
    if record.get(name) is None:
        return []
    return [clean(check(v, "text", f"{at}{name}")) for v in field(record, name, "a list", at)]


def clean(text: str) -> str:
    """Text without what a record may not hold: `MENTION` (ours alone) and lone surrogates (not Unicode)."""
    return _SURROGATE.sub("\ufffd", text.replace(MENTION, "")).strip()


def is_plain(text: str) -> bool:
    """Whether text is Unicode, without what no file name and no record may hold."""
    return not _SURROGATE.search(text) and MENTION not in text and "\0" not in text


def unique(dialogues: Iterable[tuple[str, Dialogue]], faults: Faults) -> list[Dialogue]:
    """Drops (or refuses) a dialogue whose id was seen before; pairs are (where, dialogue)."""
    seen: dict[str, str] = {}
    kept = []
    for where, dialogue in dialogues:
        first = seen.setdefault(dialogue.dialogue_id, dialogue.source)

        def fresh(dialogue: Dialogue = dialogue, first: str = first) -> Dialogue:
            if first != dialogue.source:
                raise RecordError(f"dialogue id {dialogue.dialogue_id!r} stands in {first} too; ids must be unique")
            return dialogue

        if faults.attempt(where, fresh):
            kept.append(dialogue)
    return kept
