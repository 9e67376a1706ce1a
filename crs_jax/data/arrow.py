"""The cache of prepared corpora: Arrow tables by `datasets`, under a fingerprint of all that they were made from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import Dialogue, Feedback, Turn
from crs_jax.runtime.kept import is_whole, making
from crs_jax.runtime.progress import say
from crs_jax.runtime.storage import sha256

PARTS = ("train", "validation", "test")
VERSION = 2  # of the tables below
_CODE = ("arrow", "corpora", "corpus", "dialogue", "inspired", "mentions", "opendialkg", "records", "redial", "splits")


def fingerprint(settings: Mapping[str, Any], inputs: Iterable[pathlib.Path]) -> str:
    """Hex digest of the settings, the inputs' names and contents, this format's version and the loaders' own code."""
    digest = hashlib.sha256(json.dumps([VERSION, dict(settings)], sort_keys=True).encode())
    code = (pathlib.Path(__file__).with_name(f"{name}.py") for name in _CODE)
    for path in [*code, *inputs]:
        digest.update(f"\0{path.name}\0{sha256(path)}".encode())
    return digest.hexdigest()[:24]


def save(
    folder: pathlib.Path, catalogue: Catalogue, parts: Mapping[str, Sequence[Dialogue]], facts: Mapping[str, Any]
) -> None:
    """Writes beside `folder`, then puts it there (`kept.making`)."""
    import datasets

    with making(folder) as new:
        for part in (part for part in PARTS if parts[part]):  # an empty table cannot be read back
            columns = _columns(parts[part])
            datasets.Dataset.from_dict(columns, features=_features()).save_to_disk(str(new / part))
        items = [dataclasses.asdict(item) for item in catalogue.items]
        datasets.Dataset.from_list(items, features=_item_features()).save_to_disk(str(new / "catalogue"))
        sizes = {part: len(parts[part]) for part in PARTS}
        (new / "facts.json").write_text(json.dumps([sizes, dict(facts)]), encoding="utf-8")


def load(folder: pathlib.Path) -> tuple[Catalogue, dict[str, tuple[Dialogue, ...]], dict[str, Any]] | None:
    """What `save` wrote; None where there is nothing, or what is there is damaged, which is said."""
    import datasets

    if not folder.is_dir():
        return None
    try:
        if not is_whole(folder):
            raise ValueError("its files are not those that were written")
        catalogue = Catalogue(tuple(map(_item, datasets.load_from_disk(str(folder / "catalogue")).to_list())))
        sizes, facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        parts = {p: _dialogues(datasets.load_from_disk(str(folder / p))) if sizes[p] else () for p in PARTS}
    except Exception as error:
        say(f"note: {folder} is damaged ({' '.join(str(error).split()):.100}); the corpus is prepared again")
        return None
    return catalogue, parts, facts


def _item_features() -> Any:
    import datasets

    text = datasets.Value("string")
    columns = {"item_id": text, "title": text, "year": datasets.Value("int32"), "genres": datasets.List(text)}
    return datasets.Features({**columns, "people": datasets.List(text), "plot": text})


def _item(row: Mapping[str, Any]) -> Item:
    return Item(**{**row, "genres": tuple(row["genres"]), "people": tuple(row["people"])})


def _features() -> Any:
    import datasets

    text, code = datasets.Value("string"), datasets.Value("int8")
    each = datasets.List
    return datasets.Features(
        {
            "dialogue_id": text,
            "seeker_id": text,
            "recommender_id": text,
            "source": text,
            "roles": each(text),
            "texts": each(text),
            "items": each(each(text)),
            "seconds": each(datasets.Value("float64")),
            "feedback_items": each(text),
            "suggested": each(code),
            "seen": each(code),
            "liked": each(code),
        }
    )


def _columns(dialogues: Sequence[Dialogue]) -> dict[str, list[Any]]:
    answers = [list(d.feedback.values()) for d in dialogues]
    return {
        "dialogue_id": [d.dialogue_id for d in dialogues],
        "seeker_id": [d.seeker_id for d in dialogues],
        "recommender_id": [d.recommender_id for d in dialogues],
        "source": [d.source for d in dialogues],
        "roles": [[t.role for t in d.turns] for d in dialogues],
        "texts": [[t.text for t in d.turns] for d in dialogues],
        "items": [[list(t.items) for t in d.turns] for d in dialogues],
        "seconds": [[t.seconds for t in d.turns] for d in dialogues],
        "feedback_items": [list(d.feedback) for d in dialogues],
        "suggested": [[a.suggested for a in row] for row in answers],
        "seen": [[a.seen for a in row] for row in answers],
        "liked": [[a.liked for a in row] for row in answers],
    }


def _dialogues(table: Any) -> tuple[Dialogue, ...]:
    return tuple(
        Dialogue(
            row["dialogue_id"],
            tuple(map(Turn, row["roles"], row["texts"], map(tuple, row["items"]), row["seconds"])),
            dict(
                zip(
                    row["feedback_items"],
                    map(Feedback, row["suggested"], row["seen"], row["liked"]),
                    strict=True,
                )
            ),
            row["seeker_id"],
            row["recommender_id"],
            row["source"],
        )
        for row in table.to_list()
    )
