"""Sample dialogues: the context, then what the person, SFT and PPO replied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crs_jax.reporting.figures import name_of, number
from crs_jax.reporting.html import Html, folded, missing, note, section, tag
from crs_jax.reporting.workdir import Run

OPEN = 3  # samples that stand open
REWARDS = ("reward", "engagement", "relevance", "sentiment")


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _titles(titles: list[Any], human: set[str], label: str, ordered: bool) -> Html:
    if not titles:
        return Html("")
    entries = [tag("li", title, class_="hit" if str(title) in human else None) for title in titles]
    return tag("div", tag("span", label, class_="label"), tag("ol" if ordered else "ul", *entries), class_="titles")


def _reply(who: str, reply: Mapping[str, Any] | None, human: set[str]) -> Html:
    heading = tag("h4", tag("i", class_="mark", style=f"background:var(--{who})"), name_of(who))
    if not reply:
        return tag("div", heading, missing("No reply in this run."), class_="reply")
    scores = [(name, reply[name]) for name in REWARDS if _real(reply.get(name))]
    numbers = [tag("span", name_of(name), " ", tag("b", number(value, signed=True))) for name, value in scores]
    marked = human if who != "human" else set()
    return tag(
        "div",
        heading,
        tag("p", reply["text"] or "(no words)", class_="words") if "text" in reply else missing("Ranking only."),
        _titles(reply.get("items") or [], marked, "Proposes", ordered=False),
        _titles(reply.get("top") or [], marked, "Top of the ranking", ordered=True),
        tag("p", *numbers, class_="scores") if numbers else "",
        class_="reply",
    )


def _sample(number_of: int, sample: Mapping[str, Any]) -> Html:
    turns = [
        tag("p", tag("span", name_of(str(turn.get("role", "?"))), class_="role"), turn.get("text", ""),
            class_="turn recommender" if turn.get("role") == "recommender" else "turn")
        for turn in sample.get("context") or []
    ]  # fmt: skip
    human = {str(title) for title in (sample.get("human") or {}).get("items") or []}
    rewards = [
        f"{name_of(who)} {number((sample.get(who) or {}).get('reward'), signed=True)}"
        for who in ("sft", "ppo")
        if _real((sample.get(who) or {}).get("reward"))
    ]
    title = [f"Dialogue {sample.get('dialogue_id', number_of)}, message {sample.get('turn', '?')}"]
    if rewards:
        title.append(tag("span", "reward: " + ", ".join(rewards), class_="aside"))
    replies = [_reply(who, sample.get(who), human) for who in ("human", "sft", "ppo")]
    return folded(
        tag("span", *title),
        tag("div", *turns, class_="context"),
        tag("div", *replies, class_="replies"),
        is_open=number_of <= OPEN,
    )


def samples(run: Run) -> Html:
    """The section with all sample dialogues, the first few open."""
    title = "Sample dialogues"
    if not run.samples:
        return section("samples", title, missing("No samples: samples.jsonl is missing or empty."))
    words = note("Marked titles are among those that the person proposed here. Titles and words are as generated.")
    entries = [_sample(number_of, sample) for number_of, sample in enumerate(run.samples, 1)]
    return section("samples", title, words, tag("div", *entries, class_="samples"))
