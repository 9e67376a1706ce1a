"""From a config to what the stages work on: corpus, tokenizer, tokens and frozen embeddings, each cached on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax import plugins
from crs_jax.data.corpus import Corpus, load
from crs_jax.data.dialogue import RECOMMENDER, Dialogue
from crs_jax.data.tokenizer import DialogueTokenizer, training_texts
from crs_jax.features.attributes import Attributes
from crs_jax.features.cooccurrence import CoOccurrence
from crs_jax.features.people import People
from crs_jax.inputs.task import SPLITS, Task
from crs_jax.models.encoder import embed, embed_on_host, find_encoder
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import read_json, write_json
from crs_jax.runtime.kept import clean
from crs_jax.runtime.progress import Progress, say
from crs_jax.signals.relevance import utterance_texts
from crs_jax.training.transfer import source_tokenizer


def make_tokenizer(config: ConfigDict, corpus: Corpus, workdir: pathlib.Path) -> DialogueTokenizer:
    """The tokenizer in `workdir/tokenizer`, made first where there is none: BPE of the training split, or GPT-2's.

    With `config.model.transfer` it is that run's.
    """
    folder = workdir / "tokenizer"
    if config.model.transfer:
        tokenizer = source_tokenizer(config, len(corpus.catalogue))
        tokenizer.save(folder)
        return tokenizer
    texts = list(training_texts(corpus.train, corpus.catalogue))
    source = {
        "--config.tokenizer": config.tokenizer.to_dict(),
        "number of items": len(corpus.catalogue),
        "training data": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }
    path = folder / "made_from.json"
    if path.exists():
        found = read_json(path)
        if found == source:
            return DialogueTokenizer.load(folder)
        if (workdir / "checkpoints").is_dir():
            differs = " and ".join(
                f"another {name}" + ("" if name == "training data" else f" ({found.get(name)}, now {value})")
                for name, value in source.items()
                if found.get(name) != value
            )
            raise InputError(
                f"{folder}: made with {differs}, and {workdir} holds models that use it; choose another --workdir"
            )
    if config.tokenizer.kind == "gpt2":
        tokenizer = DialogueTokenizer.gpt2(config.tokenizer.path, len(corpus.catalogue))
    else:
        tokenizer = DialogueTokenizer.train(texts, config.tokenizer.vocab_size, len(corpus.catalogue))
    tokenizer.save(folder)
    write_json(path, source)
    return tokenizer


def made_from(
    config: ConfigDict, corpus: Corpus, tokenizer: DialogueTokenizer, splits: Sequence[str]
) -> dict[str, str]:
    """Name to fingerprint of what all models rest on: catalogue, vocabulary, sentence encoder, splits' dialogues."""
    said = ((split, dialogue.dialogue_id, dialogue.turns) for split in splits for dialogue in getattr(corpus, split))
    parts: dict[str, Iterable[Any]] = {
        "catalogue": corpus.catalogue.items,
        "vocabulary": [tokenizer.word_bytes],
        "sentence encoder": [find_encoder(config.encoder).name, config.encoder.max_tokens],
        "set of dialogues": said,
    }
    found = {}
    for name, values in parts.items():
        digest = hashlib.sha256()
        for value in values:
            digest.update(repr(value).encode("utf-8", "surrogatepass"))
        found[name] = digest.hexdigest()[:16]
    return found | plugins.fingerprints(config.plugins)


def prepare(config: ConfigDict, workdir: pathlib.Path, mesh: Mesh) -> Task:
    """Loads or makes everything that does not learn."""
    corpus = load(config, workdir)
    for note in corpus.notes:
        say(f"data: {note}")
    for line in corpus.skipped[:20]:
        say(f"data: skipped {line}")
    if not corpus.train or not corpus.test:
        raise InputError(
            f"{corpus.name}: {len(corpus.train)} training and {len(corpus.test)} test dialogues; need both"
        )
    if "sft" in config.stages and not any(_replies(dialogue) for dialogue in corpus.validation):
        raise InputError(
            f"--config.data.validation_dialogues={config.data.validation_dialogues}: none of the "
            f"{len(corpus.validation)} validation dialogues has a reply to choose a model by; set it higher"
        )
    tokenizer = make_tokenizer(config, corpus, workdir)
    encoded = {
        split: tokenizer.encode_dialogues(getattr(corpus, split), corpus.catalogue, config.data.act_items)
        for split in SPLITS
    }
    cache = pathlib.Path(config.data.cache_dir).expanduser() if config.data.cache_dir else workdir / "cache"
    clean(cache)
    find_encoder(config.encoder)
    with_cache = functools.partial(embed, config=config.encoder, cache_dir=cache)
    texts = [item.describe() for item in corpus.catalogue.items]
    for split in SPLITS:
        dialogues = getattr(corpus, split)
        spoken = utterance_texts(dialogues, corpus.catalogue)
        texts += [
            text
            for dialogue, row in zip(dialogues, spoken, strict=True)
            for turn, text in zip(dialogue.turns, row, strict=True)
            if turn.role == "seeker"
        ]
    with Progress(None, "sentence embeddings", "texts") as progress:
        vectors = with_cache(texts, progress=lambda done, total: _advance(progress, done, total))
    content_NE = vectors[: len(corpus.catalogue)]
    return Task(
        config=config,
        workdir=workdir,
        mesh=mesh,
        corpus=corpus,
        tokenizer=tokenizer,
        encoded=encoded,
        content_NE=content_NE,
        attributes=Attributes.of(corpus.catalogue),
        cooccurrence=CoOccurrence(corpus.train, corpus.catalogue),
        people=People(corpus.catalogue),
        embed=with_cache,
        embed_on_host=functools.partial(embed_on_host, config=config.encoder),
        cache=cache,
        made_from=made_from(config, corpus, tokenizer, ("train", "validation")),
    )


def _replies(dialogue: Dialogue) -> bool:
    return any(t > 0 and turn.role == RECOMMENDER for t, turn in enumerate(dialogue.turns))


def _advance(progress: Progress, done: int, total: int) -> None:
    progress.total = total
    progress.update(done - progress.done)
