"""The registry of corpora: where dialogues come from, an entry each."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from crs_jax.runtime.registry import Registry


@dataclasses.dataclass(frozen=True)
class CorpusSource:
    """Where a corpus comes from, and what is known of it.

    Attributes:
      title: as people call it.
      loader: what reads it, a module's name or an object: `files(folder, data)` are the files that decide its content,
        `parse(folder, data, scratch)` gives `data/records.py`'s `Parsed`; where the hub has it, `HUB` is its name there
        and `parse_hub(hub, data, scratch)` reads that. `data` is `config.data`.
      about: a sentence on who made it and what its licence asks, for model cards.
      licence, licence_name: the licence by the hub's name, and what it is called there where that is `other`.
      by_recommender: validation is cut by recommender; else by dialogue, none of which shares its opening with test.
      opening_words: of the first message that make two openings the same.
      metadata: genres and people may come from `config.data.metadata`.
      simulated: the simulator makes it, and knows the true utility of each item.
    """

    title: str
    loader: Any
    about: str = ""
    licence: str = "other"
    licence_name: str = ""
    by_recommender: bool = False
    opening_words: int = 1
    metadata: bool = False
    simulated: bool = False

    @property
    def reader(self) -> Any:
        """The loader itself."""
        return importlib.import_module(self.loader) if isinstance(self.loader, str) else self.loader


CORPORA = Registry(
    "corpus",
    {
        "simulated": CorpusSource(
            "Simulated corpus",
            "crs_jax.data.redial",
            "The dialogues are simulated by crs_jax: invented items, and seekers with hidden tastes. No person wrote "
            "them.",
            "apache-2.0",
            by_recommender=True,
            simulated=True,
        ),
        "redial": CorpusSource(
            "ReDial",
            "crs_jax.data.redial",
            "ReDial (Li et al. 2018, *Towards Deep Conversational Recommendations*), CC BY 4.0: the weights and the "
            "item table are derived from it, and whoever passes them on names it.",
            "cc-by-4.0",
            by_recommender=True,
            metadata=True,
        ),
        "opendialkg": CorpusSource(
            "OpenDialKG",
            "crs_jax.data.opendialkg",
            "OpenDialKG (Moon et al. 2019), CC BY-NC 4.0, which excludes commercial use, of what is derived from it "
            "too.",
            "cc-by-nc-4.0",
        ),
        "inspired": CorpusSource(
            "INSPIRED",
            "crs_jax.data.inspired",
            "INSPIRED (Hayati et al. 2020), for research.",
            licence_name="research-only",
            opening_words=12,  # a greeting or two is no opening: "Hello" begins 105 of the 900 dialogues
        ),
    },
)


def is_simulated(name: str) -> bool:
    """Whether the simulator made the corpus of that name, and knows its seekers."""
    return name in CORPORA and CORPORA[name].simulated


def corpus_title(name: str) -> str:
    """The corpus of that name as people call it."""
    return CORPORA[name].title if name in CORPORA else name
