"""Sentiment of what seekers say, and how it moves over a recommender's message. A weak label.

`vader` is the rule-based lexicon of Hutto & Gilbert 2014 (VADER, ICWSM): its compound score. Anything else names a
three- or two-class classifier for `transformers` (such as a RoBERTa trained on tweets): p(positive) - p(negative).
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crs_jax.data.dialogue import MENTION, Dialogue
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.storage import is_folder
from crs_jax.signals.reactions import plain_text, reactions

MAX_TOKENS = 128  # of one utterance, classifier only; what is longer is cut
BATCH = 32


def sentiment(texts: Sequence[str], kind: str = "vader") -> np.ndarray:
    """float32 [n] in [-1, 1], 0 for an empty text.

    Args:
      texts: utterances; mention characters are dropped, so that titles do not count.
      kind: `config.signals.sentiment`: `vader`, or a classifier's folder or hub id.

    Raises:
      InputError: the classifier cannot be loaded, or its labels do not say which is positive.
    """
    plain = [" ".join(text.replace(MENTION, " ").split()) for text in texts]
    distinct = [text for text in dict.fromkeys(plain) if text]
    known, score = _scorer(kind)
    new = [text for text in distinct if text not in known]
    if new:
        known.update(zip(new, score(new), strict=True))
    return np.array([known.get(text, 0.0) for text in plain], dtype=np.float32)


def carried_over(dialogues: Sequence[Dialogue], kind: str = "vader") -> float:
    """How much of the mood before is still there in the reaction: slope of its least-squares line, 0 without data."""
    _, value = _before_and_after(dialogues, kind)
    before, after = value[::2].astype(np.float64), value[1::2].astype(np.float64)
    if len(before) < 2 or np.ptp(before) == 0:
        return 0.0
    centred = before - before.mean()
    return float(centred @ after / (centred @ centred))


def sentiment_shift(dialogues: Sequence[Dialogue], kind: str = "vader", carried: float = 1.0) -> list[np.ndarray]:
    """Sentiment of the seeker's reaction minus that of what the seeker said before the recommender's message.

    Messages of one speaker in a row are joined, on both sides. With `carried` 1 it is the plain difference, which falls
    after any cheerful message, whatever is proposed: moods go back to their mean. With `carried_over` of the training
    dialogues it is what the mood before does not foretell.

    Returns:
      For each dialogue float32 [turns] in [-2, 2], NaN where the recommender opens the dialogue, ends it, or goes on.
    """
    where, value = _before_and_after(dialogues, kind)
    out = [np.full(len(dialogue.turns), np.nan, dtype=np.float32) for dialogue in dialogues]
    for i, (d, t) in enumerate(where):
        out[d][t] = value[2 * i + 1] - carried * value[2 * i]
    return out


def _before_and_after(dialogues: Sequence[Dialogue], kind: str) -> tuple[list[tuple[int, int]], np.ndarray]:
    """(dialogue, turn) of the messages with both; and sentiments, before and after by turns."""
    where: list[tuple[int, int]] = []
    texts: list[str] = []
    for d, dialogue in enumerate(dialogues):
        for reaction in reactions(dialogue):
            if reaction.before and reaction.after:
                where.append((d, reaction.turn))
                texts += [plain_text(reaction.before), plain_text(reaction.after)]
    return where, sentiment(texts, kind)


def hub_id(kind: str) -> tuple[str, str]:
    """Repository and revision of a classifier on the hub; `InputError` where `kind` names none."""
    name, _, revision = kind.partition("@")
    if not revision:
        raise InputError(
            f"config.signals.sentiment: {kind!r} is no folder, and a hub id needs its revision: owner/name@commit"
        )
    return name, revision


@functools.cache
def _scorer(kind: str) -> tuple[dict[str, float], Callable[[list[str]], list[float]]]:
    """What was scored before in this process, and what scores the rest."""
    return {}, _vader() if kind == "vader" else _classifier(kind)


def _vader() -> Callable[[list[str]], list[float]]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda texts: [analyzer.polarity_scores(text)["compound"] for text in texts]


def _classifier(kind: str) -> Callable[[list[str]], list[float]]:
    """Loads a classifier; texts of like length run together. torch reads weights that are a pickle as data alone."""
    import transformers

    at = None if is_folder(kind) else hub_id(kind)
    try:
        folder = os.path.expanduser(kind) if at is None else _fetched(*at)
        model: Any = transformers.pipeline("text-classification", model=folder, tokenizer=folder, top_k=None, device=-1)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"config.signals.sentiment: no classifier could be loaded from {kind!r} ({reason}); give 'vader', or the "
            "folder or hub id of a text classifier (needs the extra 'roberta')"
        ) from error
    signs = label_signs(model.model.config.id2label, kind)

    def run(texts: list[str]) -> list[float]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        values = [0.0] * len(texts)
        results = model([texts[i] for i in order], batch_size=BATCH, truncation=True, max_length=MAX_TOKENS)
        for i, scores in zip(order, results, strict=True):
            values[i] = sum(signs[entry["label"]] * entry["score"] for entry in scores)
        return values

    return run


def _fetched(repository: str, revision: str) -> str:
    """Folder of a classifier from the hub, which is asked for nothing that was fetched before.

    Given the repository's name, transformers would look for a dozen other files, and ask a service of the hub to
    convert weights that are a pickle.
    """
    from huggingface_hub import snapshot_download

    words = ["*.json", "*.txt", "*.model"]
    folder = snapshot_download(repository, revision=revision, allow_patterns=[*words, "model*.safetensors"])
    if not any(pathlib.Path(folder).glob("model*.safetensors")):
        folder = snapshot_download(repository, revision=revision, allow_patterns=[*words, "pytorch_model*.bin"])
    return folder


def label_signs(id2label: Mapping[int, str], kind: str) -> dict[str, float]:
    """+1, 0 or -1 for each label of a classifier.

    Labels without names (`LABEL_0`, ...) are read in the order these classifiers are published in: negative, neutral,
    positive, or negative, positive.
    """
    names = [id2label[i] for i in sorted(id2label)]
    lowered = [name.lower() for name in names]
    if all(name.startswith("label_") for name in lowered) and len(names) in (2, 3):
        return dict(zip(names, (-1.0, 1.0) if len(names) == 2 else (-1.0, 0.0, 1.0), strict=True))
    signs = {name: 1.0 if low.startswith("pos") else -1.0 if low.startswith("neg") else 0.0
             for name, low in zip(names, lowered, strict=True)}  # fmt: skip
    if sorted(signs.values())[:1] != [-1.0] or max(signs.values()) != 1.0:
        raise InputError(
            f"config.signals.sentiment: the labels of {kind!r} are {', '.join(names)}; a classifier with the labels "
            "negative and positive is needed"
        )
    return signs
