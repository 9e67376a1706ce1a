"""Sample dialogues: the context, then what the person, SFT and PPO replied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crs_jax.tools.report.figures import name_of, number
from crs_jax.tools.report.html import Html, folded, missing, note, section, tag
from crs_jax.tools.report.workdir import Run

OPEN = 3  # samples that stand open
SHOWN = 10  # that stand there, closed ones too
NO_REWARDS = ("text", "greedy", "items", "top", "chances")  # of a reply's fields


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _titles(titles: list[Any], human: set[str], label: str, ordered: bool, chances: Sequence[Any] = ()) -> Html:
    if not titles:
        return Html("")
    entries = []
    for number_of, title in enumerate(titles):
        chance = chances[number_of] if number_of < len(chances) and _real(chances[number_of]) else None
        beside = "" if chance is None else tag("span", f"{100 * chance:.1f}%")
        entries.append(tag("li", title, beside, class_="hit" if str(title) in human else None))
    return tag("div", tag("span", label, class_="label"), tag("ol" if ordered else "ul", *entries), class_="titles")


def _signed(value: Any) -> str:
    return number(value, signed=True) if _real(value) else "–"


def _reply(who: str, reply: Mapping[str, Any] | None, human: set[str]) -> Html:
    heading = tag("h4", tag("i", class_="mark", style=f"background:var(--{who})"), name_of(who))
    if not reply:
        return tag("div", heading, missing("No reply in this run."), class_="reply")
    numbers = []
    if _real(reply.get("reward")):
        for name, value in reply.items():
            if name not in NO_REWARDS:
                cells = tag("th", name_of(name), scope="row"), tag("td", _signed(value), class_="n")
                numbers.append(tag("tr", *cells, class_="total" if name == "reward" else None))
    chances = reply.get("chances")
    chances = chances if isinstance(chances, list) else []
    marked = human if who != "human" else set()
    return tag(
        "div",
        heading,
        tag("p", reply["text"] or "(no words)", class_="words") if "text" in reply else missing("Ranking only."),
        _titles(reply.get("items") or [], marked, "Proposes", ordered=False),
        _titles(reply.get("top") or [], marked, "Top of the ranking", ordered=True, chances=chances),
        tag("table", tag("tbody", *numbers), class_="scores") if numbers else "",
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
    words = note(
        "Marked titles are among those that the person proposed here. Titles and words are as generated. Beside the "
        "top of the ranking: the chance of each item, were one proposed now. The reward is a weighted sum of its "
        "parts, each in standard deviations over SFT's replies; a dash where a reply has none: one without "
        "an item that was not named before has no relevance."
    )
    entries = [_sample(number_of, sample) for number_of, sample in enumerate(run.samples, 1)]
    rest = entries[SHOWN:]
    more = folded(f"{len(rest)} more dialogue{'s' * (len(rest) > 1)}", *rest) if rest else ""
    return section("samples", title, words, tag("div", *entries[:SHOWN], more, class_="samples"))
