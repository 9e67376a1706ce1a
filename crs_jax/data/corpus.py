"""One corpus, ready: read by its loader, split, cached as Arrow."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from crs_jax.data import arrow, redial, splits
from crs_jax.data.catalogue import Catalogue
from crs_jax.data.corpora import CORPORA, is_simulated
from crs_jax.data.dialogue import Dialogue
from crs_jax.data.records import Faults, Parsed
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.python_file import named_files
from crs_jax.runtime.storage import refuse_links_out


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All that a run knows of its data.

    Attributes:
      name: the dataset's name.
      catalogue: what can be recommended, of all parts.
      train, validation, test: no dialogue stands in two; see `splits` for what else they do not share.
      skipped: one line for each malformed record (`config.data.on_error=skip`).
      folder: where the raw files are; None from the hub.
      notes: one line for each thing the split dropped or made up.
    """

    name: str
    catalogue: Catalogue
    train: tuple[Dialogue, ...]
    validation: tuple[Dialogue, ...]
    test: tuple[Dialogue, ...]
    skipped: tuple[str, ...] = ()
    folder: pathlib.Path | None = None
    notes: tuple[str, ...] = ()


def load(config: Any, workdir: pathlib.Path, stored: bool = False) -> Corpus:
    """The corpus `config.data.dataset`, from the cache where it was prepared before.

    With `stored`, for a config that a file holds, folders that it names are read alone: what is missing there is made
    in `workdir`.

    The cache (`config.data.cache_dir`, else `workdir/cache`) is keyed by the files' contents, the settings that shape
    the corpus and the loaders' code; a hub repository by its name and revision. `max_train_dialogues` and
    `max_eval_dialogues` choose from the prepared corpus by `config.seed`.
    """
    data = config.data
    if data.dataset not in CORPORA:
        raise InputError(f"config.data.dataset is {data.dataset!r}: set it to one of {', '.join(CORPORA)}")
    if config.seed < 0:
        raise InputError(f"config.seed is {config.seed}: set it to 0 or more")
    Faults(data.on_error)
    loader = CORPORA[data.dataset].reader
    workdir = pathlib.Path(workdir)
    folder = _folder(config, workdir, stored)
    hub = "" if folder else _hub(data)
    prepared = _prepared(config, workdir, folder, hub)
    with _quiet():
        found = arrow.load(prepared)
        if found is None and stored and data.cache_dir:
            prepared = workdir / "cache" / prepared.name
            found = arrow.load(prepared)
        if found is None:
            cache = prepared.parent
            if stored:
                refuse_links_out(cache, workdir)
            cache.mkdir(parents=True, exist_ok=True)
            scratch = pathlib.Path(tempfile.mkdtemp(prefix=".raw-", dir=cache))
            try:
                parsed = loader.parse(folder, data, scratch) if folder else loader.parse_hub(hub, data, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            parts, notes = _split(data.dataset, parsed, data.validation_dialogues, config.seed)
            facts: dict[str, Any] = {"skipped": parsed.skipped, "notes": [*parsed.notes, *notes]}
            arrow.save(prepared, parsed.catalogue, parts, facts)
            found = parsed.catalogue, {name: tuple(part) for name, part in parts.items()}, facts
    catalogue, tuples, facts = found
    return Corpus(
        name=data.dataset,
        catalogue=catalogue,
        train=splits.subset(tuples["train"], data.max_train_dialogues, config.seed),
        validation=splits.subset(tuples["validation"], data.max_eval_dialogues, config.seed),
        test=splits.subset(tuples["test"], data.max_eval_dialogues, config.seed),
        skipped=tuple(facts["skipped"]),
        folder=folder,
        notes=tuple(facts["notes"]),
    )


def hub_wanted(config: Any, workdir: pathlib.Path) -> str:
    """The repository that `load` would read from the hub; empty for a folder and for a corpus prepared before."""
    data = config.data
    hub = "" if data.dir or is_simulated(data.dataset) else _hub(data)
    if not hub or pathlib.Path(hub).is_dir() or _prepared(config, workdir, None, hub).is_dir():
        return ""
    return hub


def _hub(data: Any) -> str:
    return data.hub or getattr(CORPORA[data.dataset].reader, "HUB", "")


def _prepared(config: Any, workdir: pathlib.Path, folder: pathlib.Path | None, hub: str) -> pathlib.Path:
    """Where the prepared corpus is kept, made or not."""
    data = config.data
    cache = pathlib.Path(data.cache_dir).expanduser() if data.cache_dir else workdir / "cache"
    settings = {name: data[name] for name in ("dataset", "domain", "on_error", "validation_dialogues")}
    settings |= {"seed": config.seed, "hub": hub, "revision": data.revision if hub else ""}
    inputs = [*_inputs(data.dataset, folder, hub, data), *named_files(config.get("plugins", ""))]
    return cache / f"{data.dataset}-{arrow.fingerprint(settings, inputs)}"


def _folder(config: Any, workdir: pathlib.Path, stored: bool) -> pathlib.Path | None:
    """Where the raw files are, made by the simulator if need be; None for the hub."""
    data = config.data
    folder = pathlib.Path(data.dir).expanduser() if data.dir else None
    if is_simulated(data.dataset):
        from crs_jax.data import simulated

        folder = folder or workdir / "data"
        if stored and not simulated.holds(folder, config.simulator, config.seed):
            folder = workdir / "data"
            refuse_links_out(folder, workdir)
        simulated.generate(folder, config.simulator, config.seed)
    if folder and not folder.is_dir():
        raise InputError(f"config.data.dir={data.dir!r}: no such folder: give the one that holds the corpus' files")
    return folder


def _inputs(dataset: str, folder: pathlib.Path | None, hub: str, data: Any) -> list[pathlib.Path]:
    loader = CORPORA[dataset].reader
    if folder:
        return loader.files(folder, data)
    if not hub or not hasattr(loader, "parse_hub"):
        raise InputError(f"config.data.dir is empty: give the folder that holds {data.dataset}'s files")
    local = sorted(p for p in pathlib.Path(hub).rglob("*") if p.is_file()) if pathlib.Path(hub).is_dir() else []
    known = redial.metadata_file(data) if CORPORA[dataset].metadata else None
    return [*local, *([known] if known else [])]


def _split(dataset: str, parsed: Parsed, count: int, seed: int) -> tuple[dict[str, list[Dialogue]], list[str]]:
    notes = []
    train, test = parsed.train, parsed.test
    if not train:
        raise InputError(f"config.data.dataset={dataset}: no dialogue to train on was found: check config.data.dir")
    source = CORPORA[dataset]
    if source.by_recommender:
        train, validation, dropped = splits.by_recommender(train, count, seed)
        if dropped:
            notes.append(f"dropped {dropped} train dialogues that share a seeker with validation")
    else:
        words = source.opening_words
        if not test:
            train, test = splits.cut_test(train)
            notes.append(f"no test part given: {len(test)} dialogues were cut off as test, the same for every seed")
        clear = splits.drop_shared(train, test, words)
        if len(clear) < len(train):
            notes.append(f"dropped {len(train) - len(clear)} train dialogues that share their opening with test")
        train, validation = splits.by_opening(clear, count, seed, words)
    return {"train": train, "validation": validation, "test": test}, notes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`, which count rows of steps that take a second."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
