"""From a config to what the stages work on: corpus, tokenizer, tokens and frozen embeddings, each cached on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib

from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.data.corpus import Corpus, load
from crs_jax.data.tokenizer import DialogueTokenizer, training_texts
from crs_jax.errors import InputError
from crs_jax.models.encoder import embed, find_encoder
from crs_jax.progress import Progress, say
from crs_jax.signals.relevance import utterance_texts
from crs_jax.training.task import SPLITS, Task


def make_tokenizer(config: ConfigDict, corpus: Corpus, workdir: pathlib.Path) -> DialogueTokenizer:
    """The tokenizer in `workdir/tokenizer`, made first where there is none: BPE of the training split, or GPT-2's."""
    folder = workdir / "tokenizer"
    if (folder / "dialogue_tokenizer.json").exists():
        tokenizer = DialogueTokenizer.load(folder)
        if tokenizer.num_items != len(corpus.catalogue):
            raise InputError(
                f"{folder}: made for {tokenizer.num_items} items, the catalogue has {len(corpus.catalogue)}; "
                "use another --workdir"
            )
        return tokenizer
    if config.tokenizer.kind == "gpt2":
        tokenizer = DialogueTokenizer.gpt2(config.tokenizer.path, len(corpus.catalogue))
    else:
        texts = training_texts(corpus.train, corpus.catalogue)
        tokenizer = DialogueTokenizer.train(texts, config.tokenizer.vocab_size, len(corpus.catalogue))
    tokenizer.save(folder)
    return tokenizer


def fingerprint(config: ConfigDict, corpus: Corpus) -> str:
    """Of the dialogues, the catalogue and the encoder's settings."""
    digest = hashlib.sha256(json.dumps(config.encoder.to_dict()).encode())
    digest.update(repr(corpus.catalogue.items).encode())
    for split in SPLITS:
        digest.update(split.encode())
        for dialogue in getattr(corpus, split):
            digest.update(repr((dialogue.dialogue_id, dialogue.turns)).encode())
    return digest.hexdigest()


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
    tokenizer = make_tokenizer(config, corpus, workdir)
    encoded = {
        split: tokenizer.encode_dialogues(getattr(corpus, split), corpus.catalogue, config.data.act_items)
        for split in SPLITS
    }
    cache = pathlib.Path(config.data.cache_dir).expanduser() if config.data.cache_dir else workdir / "cache"
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
        embed=with_cache,
        cache=cache,
        fingerprint=fingerprint(config, corpus),
    )


def _advance(progress: Progress, done: int, total: int) -> None:
    progress.total = total
    progress.update(done - progress.done)
