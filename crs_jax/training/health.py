"""Signs of reward hacking in PPO's log and in the evaluation, and the bounds at which each is worth a warning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crs_jax.rl.ppo import masked_mean
from crs_jax.rl.scoring import TokenMasks

SPAN = 5  # iterations that a mean is taken over, at the start and now

MOST_KL = 10.0  # nats a reply
LEAST_ENTROPY = 1 / 3  # of that at the start, acts and words each
LENGTH = 1.5  # factor, up or down
LEAST_ENDED = 0.9
MORE_REPETITION = 0.05
POPULARITY = 1.0  # nats of log popularity, up or down
LEAST_COVERAGE = 0.5  # of that at the start
MORE_SPREAD = 2.0  # factor on how far an ensemble's reward models disagree
LEAST_HR = 0.9  # of SFT's on validation while the validation reward is higher
LEAST_BLEU = 0.5  # the same of BLEU-4: 2.3 standard errors of the log ratio of two policies on 256 replies (.3)
MORE_RECOMMENDING = 0.15  # share of replies, up or down, on the same validation contexts; 256 of them sampled once
# have a standard error of at most .03. On test also beyond chance: the difference's 95 % interval lies beside 0
LEAST_TEST_BLEU = 0.8  # of SFT's on test, and below it beyond chance: the difference's 95 % interval lies below 0
MOST_PERPLEXITY = 1.25  # of SFT's on test: as far apart as SFT models of several seeds on ReDial, where it is 32 to 39
MOST_SENTIMENT = 0.95  # correlation of the reward with the sentiment predicted, where SFT's replies had less


def repetition(tokens_BR: jax.Array, word_BR: jax.Array) -> jax.Array:
    """Share of pairs of neighbouring words that stood before in the same reply, over all replies."""
    R = tokens_BR.shape[1]
    pair_BR = word_BR[:, :-1] & word_BR[:, 1:]
    first_BR, second_BR = tokens_BR[:, :-1], tokens_BR[:, 1:]
    same_BRR = (first_BR[:, :, None] == first_BR[:, None]) & (second_BR[:, :, None] == second_BR[:, None])
    earlier_RR = jnp.tril(jnp.ones((R - 1, R - 1), bool), -1)
    return masked_mean((same_BRR & earlier_RR & pair_BR[:, None]).any(-1).astype(jnp.float32), pair_BR)


def of_proposals(items_BM: jax.Array, popularity_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean log popularity of the items proposed, and the share of proposals that are distinct items."""
    there_BM = items_BM >= 0
    count_N = jnp.zeros(len(popularity_N)).at[jnp.where(there_BM, items_BM, len(popularity_N))].add(1.0, mode="drop")
    return masked_mean(popularity_N[items_BM], there_BM), (count_N > 0).sum() / jnp.maximum(there_BM.sum(), 1)


def measures(tokens_BR: jax.Array, masks: TokenMasks, popularity_N: jax.Array) -> dict[str, jax.Array]:
    """`health/...` of sampled replies."""
    popularity, distinct = of_proposals(masks.items_BM, popularity_N)
    return {
        "health/repetition": repetition(tokens_BR, masks.word_BR),
        "health/popularity": popularity,
        "health/distinct": distinct,
    }


class Monitor(NamedTuple):
    """One sign of reward hacking: its measure before PPO moved and now, and beyond which bound it is warned of."""

    kind: str
    measure: str
    before: float | None
    now: float | None
    bound: str
    bad: bool
    text: str


def warnings(lines: Sequence[Mapping[str, Any]], evaluated: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What `monitors` gives reason to look at, by kind; each with its figures and its bound."""
    return {monitor.kind: monitor.text for monitor in monitors(lines, evaluated) if monitor.bad}


def monitors(lines: Sequence[Mapping[str, Any]], evaluated: Mapping[str, Any] | None = None) -> list[Monitor]:
    """Every sign that the log of PPO's iterations and the evaluation have, in bounds or not.

    `lines` are those of metrics.jsonl, in order. Means over the first `SPAN` iterations are held against means over
    the last; validation figures against those of the SFT policy, logged at iteration 0. `evaluated` holds the sections
    of metrics.json; figures of PPO on test are held against SFT's.
    """
    iterations = [line for line in lines if "reward" in line]
    checks = [line for line in lines if "validation/hr@10" in line]
    found = [*_of_iterations(iterations)] if len(iterations) > SPAN else []
    if len(checks) > 1:
        found += _of_checks(checks[0], checks[-1])
    return [*found, *_of_test(evaluated or {})]


def _of_iterations(iterations: Sequence[Mapping[str, Any]]) -> Iterator[Monitor]:
    names = [name for name in iterations[0] if isinstance(iterations[0][name], (int, float))]
    names = [name for name in names if all(name in line for line in iterations)]
    first, now = (
        {name: sum(float(line[name]) for line in part) / len(part) for name in names}
        for part in (iterations[:SPAN], iterations[-SPAN:])
    )

    def held(kind: str, measure: str, name: str, bound: str, bad: bool, text: str) -> Monitor:
        return Monitor(kind, measure, first[name], now[name], bound, bad, text)

    text = f"KL is {now['kl']:.1f} nats a reply, above {MOST_KL:g}"
    yield held("kl", "KL to the SFT policy, nats a reply", "kl", f"above {MOST_KL:g}", now["kl"] > MOST_KL, text)
    for part in ("act", "word"):
        name = f"entropy/{part}"
        text = f"entropy of {part}s fell from {first[name]:.2f} to {now[name]:.2f} nats, below a third"
        bad = now[name] < LEAST_ENTROPY * first[name]
        yield held(name, f"Entropy of {part}s, nats", name, "below a third of the start", bad, text)
    ratio = now["reply_length"] / max(first["reply_length"], 1e-6)
    text = f"replies went from {first['reply_length']:.1f} to {now['reply_length']:.1f} tokens, a factor beyond "
    bad, bound = not 1 / LENGTH <= ratio <= LENGTH, f"a factor beyond {LENGTH:g}, up or down"
    yield held("length", "Reply length, tokens", "reply_length", bound, bad, f"{text}{LENGTH:g}")
    text = f"{100 * now['ended']:.0f} % of replies come to an end, below {100 * LEAST_ENDED:.0f} %"
    bad = now["ended"] < LEAST_ENDED
    yield held("ended", "Replies that end, share", "ended", f"below {LEAST_ENDED:g}", bad, text)
    name = "health/repetition"
    text = f"repeated pairs of words went from {100 * first[name]:.1f} to {100 * now[name]:.1f} %"
    bad, bound = now[name] > first[name] + MORE_REPETITION, f"more than {MORE_REPETITION:g} above the start"
    yield held("repetition", "Repeated pairs of words, share", name, bound, bad, text)
    name = "health/popularity"
    text = f"log popularity of proposals went from {first[name]:.2f} to {now[name]:.2f}, more than {POPULARITY:g}"
    bad, bound = abs(now[name] - first[name]) > POPULARITY, f"more than {POPULARITY:g} from the start"
    yield held("popularity", "Log popularity of proposals", name, bound, bad, text)
    name = "health/distinct"
    text = f"distinct items among proposals went from {100 * first[name]:.0f} to {100 * now[name]:.0f} %, below half"
    bad = now[name] < LEAST_COVERAGE * first[name]
    yield held("coverage", "Distinct items among proposals, share", name, "below half of the start", bad, text)
    name = "reward/spread"
    if name in first:
        text = f"spread of the reward models went from {first[name]:.2f} to {now[name]:.2f}, a factor beyond "
        bad, bound = now[name] > MORE_SPREAD * first[name], f"a factor beyond {MORE_SPREAD:g}"
        yield held("spread", "Spread of the reward models", name, bound, bad, f"{text}{MORE_SPREAD:g}")


def _of_checks(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Monitor]:
    risen = after["validation/reward"] > before["validation/reward"]
    up = f"validation reward rose from {before['validation/reward']:.2f} to {after['validation/reward']:.2f} while"
    for kind, name, least in (("hr", "HR@10", LEAST_HR), ("bleu", "BLEU-4", LEAST_BLEU)):
        was, ends = (line.get(f"validation/{name.lower()}") for line in (before, after))
        if was is not None and ends is not None:
            bound = f"below {least:g} of the start while the reward rises"
            text = f"{up} {name} fell from {was:.4f} to {ends:.4f}, below {least:g} of it"
            yield Monitor(kind, f"Validation {name}", was, ends, bound, risen and ends < least * was, text)
    was, ends = (line.get("validation/recommends") for line in (before, after))
    if was is not None and ends is not None:
        bad, bound = abs(ends - was) > MORE_RECOMMENDING, f"more than {MORE_RECOMMENDING:g} from the start"
        text = f"replies to validation contexts that recommend {_drift(was, ends)}"
        yield Monitor("recommends", "Validation replies that recommend, share", was, ends, bound, bad, text)
    was, ends = (line.get("validation/sentiment-reward") for line in (before, after))
    if was is not None and ends is not None:
        text = (
            f"the reward's correlation with the sentiment predicted rose from {was:.2f} to {ends:.2f}, above "
            f"{MOST_SENTIMENT:g}: it rewards little else"
        )
        measure, bound = "Reward with predicted sentiment, correlation", f"rises above {MOST_SENTIMENT:g}"
        yield Monitor("sentiment", measure, was, ends, bound, was <= MOST_SENTIMENT < ends, text)


def _of_test(evaluated: Mapping[str, Any]) -> Iterator[Monitor]:
    """Replies to test contexts and the likelihood of people's replies there, PPO's held against SFT's."""
    text = evaluated.get("text", {})
    if not {"sft", "ppo"} <= text.keys():
        return

    def both(name: str) -> tuple[float, float]:
        return text["sft"][name], text["ppo"][name]

    def interval(name: str, digits: int) -> tuple[float, float, str] | None:
        gap = evaluated.get("paired", {}).get("ppo-sft", {}).get("text", {}).get(name, {})
        low, high = gap.get("low"), gap.get("high")
        if low is None or high is None:
            return None
        return low, high, f"(95 % of the difference: {low:+.{digits}f} .. {high:+.{digits}f})"

    was, ends = both("recommends")
    if spread := interval("recommends", 2):
        low, high, shown = spread
        people = f"people: {100 * text['sft']['recommends-reference']:.0f} %"
        told = f"replies on test that recommend, sampled {shown}, {_drift(was, ends)}; {people}"
        bad = abs(ends - was) > MORE_RECOMMENDING and not low <= 0 <= high
        bound = f"more than {MORE_RECOMMENDING:g} from SFT's, beyond chance"
        yield Monitor("test-recommends", "Test replies that recommend, share", was, ends, bound, bad, told)
    was, ends = both("bleu-4")
    if spread := interval("bleu-4", 4):
        low, high, shown = spread
        told = f"BLEU-4 on test fell from {was:.4f} to {ends:.4f}, below {LEAST_TEST_BLEU:g} of it {shown}"
        bad, bound = ends < LEAST_TEST_BLEU * was and high < 0, f"below {LEAST_TEST_BLEU:g} of SFT's, beyond chance"
        yield Monitor("test-bleu", "Test BLEU-4", was, ends, bound, bad, told)
    was, ends = both("perplexity")
    told = (
        f"perplexity of people's replies on test rose from {was:.2f} to {ends:.2f}, above {MOST_PERPLEXITY:g} times it"
    )
    bad, bound = ends > MOST_PERPLEXITY * was, f"above {MOST_PERPLEXITY:g} of SFT's"
    yield Monitor("test-perplexity", "Test perplexity of people's replies", was, ends, bound, bad, told)


def _drift(was: float, ends: float) -> str:
    return f"went from {100 * was:.0f} to {100 * ends:.0f} %, more than {100 * MORE_RECOMMENDING:.0f} points"
