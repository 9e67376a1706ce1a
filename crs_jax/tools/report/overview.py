"""What ran, and whether PPO beat SFT: the top of the page."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from collections.abc import Sequence
from typing import Any

from crs_jax.data.corpora import corpus_title
from crs_jax.runtime.progress import duration
from crs_jax.tools.report import monitors
from crs_jax.tools.report.figures import PROTOCOLS, TARGETS, Figure, interval, name_of, number, p_value
from crs_jax.tools.report.html import Html, folded, join, missing, note, section, tag
from crs_jax.tools.report.tables import figure_cell, group_row, head, row_head, sentence_list, table, whisker
from crs_jax.tools.report.workdir import Run, is_figure

NO_SIGNALS = (  # what else stands beside a policy's rewards
    *("reward", "spread", "kl", "kl-act", "kl-word", "entropy", "entropy-act", "entropy-word", "length", "ended"),
)
RECOMMENDS = "Replies that recommend, share"
LOWER_IS_BETTER = ("perplexity", "bits-per-byte", "repetition", "kl")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One measure under both policies, and PPO minus SFT."""

    name: str
    sft: Figure | None
    ppo: Figure | None
    difference: Figure | None
    hint: str = ""


def _difference(run: Run, sft: Figure | None, ppo: Figure | None, *path: str) -> Figure | None:
    paired = run.difference(*path)
    if paired is None and len(path) == 2:
        paired = run.figure(path[0], "ppo-sft", path[1])
    if paired is None and sft and ppo:
        return Figure(ppo.value - sft.value)
    return paired


def ranking_comparison(run: Run, target: str, protocol: str, name: str) -> Comparison | None:
    """A ranking measure of SFT and PPO; None where neither has it."""
    sft, ppo = (run.figure("ranking", row, target, protocol, name) for row in ("sft", "ppo"))
    if sft is None and ppo is None:
        return None
    return Comparison(name_of(name), sft, ppo, _difference(run, sft, ppo, target, protocol, name))


def measure_near(run: Run, measure: str, k: int) -> str | None:
    """The name of a ranking measure at cutoff `k`, or at the cutoff nearest to it that the run has."""
    found: set[str] = set()
    for row in ("sft", "ppo"):
        for target in TARGETS:
            found |= set(run.table("ranking", row, target, "full"))
    cutoffs = [int(name.split("@")[1]) for name in found if name.startswith(f"{measure}@")]
    if cutoffs:
        return f"{measure}@{min(cutoffs, key=lambda c: (abs(c - k), c))}"
    return measure if measure in found else None


def people_recommend(run: Run) -> Figure | None:
    """The share of people's test replies that recommend; None where nothing was evaluated."""
    found = (run.figure("text", row, "recommends-reference") for row in run.table("text"))
    return next((figure for figure in found if figure), None)


def _group(run: Run, where: str, name: str, label: str = "", hint: str = "") -> Comparison | None:
    sft, ppo = (run.figure(where, row, name) for row in ("sft", "ppo"))
    if sft is None and ppo is None:
        return None
    hint = hint or ("lower is better" if name in LOWER_IS_BETTER else "")
    return Comparison(label or name_of(name), sft, ppo, _difference(run, sft, ppo, where, name), hint)


def _reward_comparisons(run: Run) -> list[Comparison]:
    rewards = run.table("rewards", "ppo") or run.table("rewards", "sft")
    parts = [name for name in rewards if name not in NO_SIGNALS]
    found = [_group(run, "rewards", "reward", "Mean reward"), *(_group(run, "rewards", name) for name in parts)]
    rows = [row for row in found if row]
    if kl := run.figure("rewards", "ppo", "kl") or run.figure("ppo", "kl"):
        rows.append(Comparison("KL to the SFT policy", None, kl, None, "nats a reply"))
    return rows


def comparisons(run: Run) -> list[tuple[str, list[Comparison]]]:
    """The headline measures by group, groups without a figure left out."""
    groups = []
    measures = [measure_near(run, "hr", 5), measure_near(run, "ndcg", 5), measure_near(run, "mrr", 10)]
    for protocol in PROTOCOLS:
        rows = [ranking_comparison(run, "fresh", protocol, name) for name in measures if name]
        groups.append((f"Ranking, fresh targets, {_protocol(run, protocol)}", rows))
    text = [_group(run, "text", name) for name in ("bleu-4", "distinct-2", "rouge-l", "perplexity")]
    people = people_recommend(run)
    hint = f"sampled; people: {number(people.value)}" if people else "sampled"
    text.append(_group(run, "text", "recommends", RECOMMENDS, hint))
    groups.append(("Replies", text))
    groups.append(("Reward on generated replies", list(_reward_comparisons(run))))
    return [(title, kept) for title, rows in groups if (kept := [row for row in rows if row])]


def _protocol(run: Run, protocol: str) -> str:
    if protocol == "full":
        return "full catalogue"
    return f"1 target + {run.setting('evaluation.negatives', 99)} sampled negatives"


def comparison_table(groups: Sequence[tuple[str, Sequence[Comparison]]]) -> Html:
    """SFT, PPO and the difference with its interval drawn about zero, each row on a scale of its own.

    Where one of the two is absent from all rows, only the other is shown.
    """
    everything = [row for _, members in groups for row in members]
    policies = [p for p in ("sft", "ppo") if any(getattr(row, p) for row in everything)]
    both = len(policies) == 2
    rows = []
    for title, members in groups:
        rows.append(group_row(title, 6 if both else 2))
        for row in members:
            figures = [figure_cell(getattr(row, policy)) for policy in policies]
            change = _change_cells(row.difference) if both else []
            rows.append(tag("tr", row_head(row.name, row.hint), *figures, *change))
    heads = [head("Measure", numeric=False), *(head(name_of(policy)) for policy in policies)]
    if both:
        heads += [head("PPO − SFT"), head("about zero", numeric=False), head("p")]
    return table([heads], rows, "SFT against PPO", "compare" if both else "")


def _change_cells(change: Figure | None) -> list[Html]:
    plot = Html("")
    if change and change.low is not None and change.high is not None:
        reach = 1.15 * max(abs(change.low), abs(change.high), abs(change.value), 1e-12)
        plot = whisker(change, -reach, reach, "ppo")
    p = p_value(change.p) if change else ""
    return [figure_cell(change, signed=True, split=True), tag("td", plot, class_="plot"), tag("td", p, class_="n")]


def _verdict(change: Figure) -> str:
    if change.low is None or change.high is None:
        return "no interval was computed"
    if change.low > 0:
        return "the interval lies above 0"
    if change.high < 0:
        return "the interval lies below 0"
    return "the interval holds 0, so the run shows no difference"


def _change_sentence(name: str, row: Comparison) -> Html:
    sft, ppo, change = row.sft, row.ppo, row.difference
    if not (sft and ppo and change):
        policy, only = ("PPO", ppo) if ppo else ("SFT", sft)
        spread = f" (95% interval {interval(only)})" if only and only.has_interval else ""
        return join([name, ": ", tag("b", number(only.value if only else None)), f" under {policy}{spread}."])
    spread = f" (95% interval {interval(change, signed=True)})" if change.has_interval else ""
    before, after, gain = tag("b", number(sft.value)), tag("b", number(ppo.value)), number(change.value, signed=True)
    return join([name, ": ", before, " under SFT, ", after, " under PPO; difference ", tag("b", gain), spread,
                 ": ", _verdict(change), "."])  # fmt: skip


def findings(run: Run) -> list[Html]:
    """The result in sentences, made of the figures alone."""
    found = []
    utility = utility_comparison(run)
    if utility:
        found.append(_change_sentence("True utility of the proposals, as the simulator knows it", utility))
    for protocol in PROTOCOLS:
        name = measure_near(run, "hr", 5)
        row = ranking_comparison(run, "fresh", protocol, name) if name else None
        if row:
            found.append(_change_sentence(f"{row.name}, fresh targets, {_protocol(run, protocol)}", row))
    if words := _replies_sentence(run):
        found.append(words)
    rewards = [row for row in _reward_comparisons(run) if row.name == "Mean reward"]
    found += [_change_sentence("Mean reward", row) for row in rewards if row.sft and row.ppo]
    return found


def _replies_sentence(run: Run) -> Html | None:
    """What PPO changes most in replies, beside what people do."""
    measures = {"recommends": "Test replies that recommend", "bleu-4": "BLEU-4",
                "perplexity": "perplexity of people's replies"}  # fmt: skip
    parts = []
    for name, label in measures.items():
        figures = {f"under {name_of(row)}": run.figure("text", row, name) for row in ("sft", "ppo")}
        figures |= {"by people": people_recommend(run)} if name == "recommends" else {}
        told = [join([tag("b", number(figure.value)), f" {who}"]) for who, figure in figures.items() if figure]
        parts += [join([f"{label}: ", join(told, ", ")])] if told else []
    return join([join(parts, "; "), "."]) if parts else None


def utility_comparison(run: Run) -> Comparison | None:
    """The simulator's true utility under both policies; None where there is no simulator."""
    sft, ppo = run.figure("simulator", "utility_sft"), run.figure("simulator", "utility_ppo")
    if sft is None and ppo is None:
        return None
    change = run.figure("simulator", "difference")
    if change and not change.has_interval:
        low, high, p = (run.figure("simulator", key) for key in ("low", "high", "p"))
        spread = (part.value if part else None for part in (low, high, p))
        change = Figure(change.value, *spread)
    elif change is None and sft and ppo:
        change = Figure(ppo.value - sft.value)
    return Comparison("True utility", sft, ppo, change, "0 to 1")


def command(run: Run) -> str:
    """The command that was run, or nothing."""
    words = run.table("run").get("command", "")
    return shlex.join(str(word) for word in words) if isinstance(words, list) else str(words)


def dataset(run: Run) -> str:
    """The corpus as people call it."""
    name = str(run.setting("data.dataset", "unknown data"))
    if name == "opendialkg":
        return f"OpenDialKG, {run.setting('data.domain', 'movies')}"
    return corpus_title(name)


def wall_seconds(run: Run) -> float | None:
    """Seconds of all stages together; of the last start of the run, where that is more."""
    stages = run.table("run", "seconds_by_stage")
    parts = [run.figure("run", "seconds_by_stage", stage) for stage in stages]
    total = run.figure("run", "seconds")
    known = [total.value if total else 0.0, sum(part.value for part in parts if part)]
    return max(known) if any(known) else None


def _device(run: Run) -> str:
    device, count = run.table("run").get("device") or "not recorded", run.figure("run", "devices")
    return f"{number(count.value)} × {device}" if count and count.value > 1 else str(device)


def _moment(text: Any) -> Any:
    """`2026-11-26T22:19:55+00:00` as people write it; what is no such moment as it is."""
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (TypeError, ValueError):
        return text


def header(run: Run) -> Html:
    """Title, facts of the run, the command, and the findings."""
    about = run.table("run")
    seconds = wall_seconds(run)
    stages = about.get("stages", run.setting("stages", ""))
    shown = ", ".join(map(str, stages)) if isinstance(stages, list) else str(stages).replace(",", ", ")
    entries = {
        "Dataset": dataset(run),
        "Stages": shown or "not recorded",
        "Device": _device(run),
        "Commit": about.get("commit") or "not recorded",
        "Wall time": duration(seconds) if seconds is not None else "not recorded",
        "Finished": _moment(about.get("finished") or about.get("date")),
        "Seed": run.setting("seed"),
    }
    pairs = [
        tag("div", tag("dt", name), tag("dd", value)) for name, value in entries.items() if value not in (None, "")
    ]
    line = command(run)
    words = join([tag("span", word) for word in line.split(" ")], " ")
    shell = tag("pre", words, class_="command", tabindex=0) if line else missing("The command was not recorded.")
    found = findings(run)
    if hacking := monitors.finding(run):
        found.append(tag("span", hacking, class_="warning") if monitors.warned(run) else hacking)
    return tag(
        "header",
        tag("p", "crs_jax run report", class_="kicker"),
        tag("h1", f"{dataset(run)}: {_policies(run)}"),
        sentence_list(found) if found else missing("No evaluation figures: the stage evaluate has not been run."),
        tag("dl", *pairs),
        tag("p", "To run it again", f", at commit {about['commit']}" if about.get("commit") else "", class_="label"),
        shell,
    )


def _has(run: Run, row: str) -> bool:
    return bool(run.table("ranking", row) or run.table("text", row) or run.table("rewards", row))


def _policies(run: Run) -> str:
    present = [name_of(row) for row in ("sft", "ppo") if _has(run, row)]
    return " against ".join(present) or "not evaluated"


def headline(run: Run) -> Html:
    """The section that sets SFT and PPO side by side."""
    title = _policies(run) if _has(run, "ppo") else "Headline figures"
    groups = comparisons(run)
    if not groups:
        return section("comparison", title, missing("Neither SFT nor PPO has been evaluated in this run."))
    words: list[Html] = []
    if not _has(run, "ppo"):
        words.append(missing("This run has no PPO stage: SFT stands alone."))
    elif not _has(run, "sft"):
        words.append(missing("This run has no figures of SFT: PPO stands alone."))
    if not any(name.startswith("Reward") for name, _ in groups):
        words.append(missing("No reward figures: the replies have not been scored by a reward model."))
    both = _has(run, "ppo") and _has(run, "sft")
    small = note(
        "Small print under a figure: its 95% bootstrap interval over dialogues.",
        " The difference is paired: both policies answer the same instances. Its plot puts zero in the middle, each "
        "row on a scale of its own."
        if both
        else "",
    )
    return section("comparison", title, *words, comparison_table(groups), small)


def simulator(run: Run) -> Html:
    """True utility, where the seekers are simulated and it is known."""
    title = "True utility"
    row = utility_comparison(run)
    if row is None:
        return section("utility", title, missing("No simulator in this run: true utility is not known."))
    n = run.figure("simulator", "n")
    about = note(
        "The simulator knows each seeker's utility, from 0 to 1, of every item; no stage of the training sees it. "
        "Here: its expectation under each policy's own distribution over items",
        f", at {number(n.value)} recommender turns" if n else "",
        ", the same for both.",
    )
    known = {"utility_sft", "utility_ppo", "difference", "low", "high", "p", "n"}
    rest = {key: value for key, value in run.table("simulator").items() if key not in known and is_figure(value)}
    rows = [
        tag("tr", row_head(name_of(key.removeprefix("utility_"))), figure_cell(run.figure("simulator", key)))
        for key in rest
    ]
    more = folded("More of the simulator's figures", table([[head("Figure", numeric=False), head("Value")]], rows,
                                                           "Simulator")) if rows else ""  # fmt: skip
    return section("utility", title, comparison_table([("Simulator", [row])]), about, more)
