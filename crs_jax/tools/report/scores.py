"""Figures of the replies, the reward model and the alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crs_jax.tools.report import monitors
from crs_jax.tools.report.figures import Figure, name_of, number
from crs_jax.tools.report.html import Html, folded, missing, note, section, tag
from crs_jax.tools.report.tables import facts, figure_cell, head, row_head, table
from crs_jax.tools.report.workdir import Run, flat_figures


def _cell(value: Any) -> Html:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return (
            figure_cell(value) if isinstance(value, Figure) else tag("td", "–" if value is None else value, class_="n")
        )
    return figure_cell(Figure(value))


def _columns(rows: Mapping[str, Mapping[str, Any]], first: Sequence[str] = ()) -> list[str]:
    """Every name that a row has, `first` in front."""
    found = dict.fromkeys(name for row in rows.values() for name in row)
    return [name for name in first if name in found] + [name for name in found if name not in first]


def _grid(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str], label: str) -> Html:
    body = []
    for row, values in rows.items():
        mark = row if row in ("sft", "ppo") else ""
        body.append(tag("tr", row_head(name_of(row), "", mark), *(_cell(values.get(name)) for name in columns)))
    return table([[head("", numeric=False), *(head(name_of(name)) for name in columns)]], body, label)


def _turned(rows: Mapping[str, Mapping[str, Any]], measures: Sequence[str], label: str) -> Html:
    """A row for each measure, so that many of them fit a narrow page."""
    return _grid(
        {name: {row: values.get(name) for row, values in rows.items()} for name in measures}, list(rows), label
    )


def row_names(values: Mapping[str, Any]) -> dict[str, str]:
    """`available · uptake` as Available · Uptake."""
    return {key: " · ".join(name_of(part) for part in key.split(" · ")) for key in values}


CALIBRATION = ("slope", "intercept", "ece", "ece-chance")


def reward_model(run: Run) -> Html:
    """Correlations of the reward model with what was observed on held-out dialogues, and its calibration."""
    title = "Reward model"
    found = run.table("reward_model")
    signals = {
        name: flat_figures(value)
        for name, value in found.items()
        if isinstance(value, dict) and {"pearson", "spearman"} & value.keys()
    }
    if not signals:
        return section("reward-model", title, missing("No reward model in this run."))
    rest = flat_figures({name: value for name, value in found.items() if name not in signals})
    words = note(
        "Predicted against observed, on held-out dialogues. The method's target before PPO is a Pearson correlation "
        "above 0.6 for engagement. By place: of a fit on turn and length alone."
    )
    origins: dict[str, list[str]] = {}
    for name, values in signals.items():
        if origin := values.pop("ceiling-from", None):
            origins.setdefault(str(origin), []).append(name_of(name).lower())
    ceilings = "; ".join(f"{', '.join(names)}: {origin}" for origin, names in origins.items())
    calibrated = {name: {k: v for k in CALIBRATION if (v := values.pop(k, None)) is not None}
                  for name, values in signals.items()}  # fmt: skip
    calibration = Html("")
    if any(calibrated.values()):
        about = note(
            "Slope and intercept of observed on predicted (ideal: 1 and 0), and expected calibration error over ten "
            "bins of equal count, in standard deviations of the signal; by chance: what a model without error in these "
            "bins would show on as many replies."
        )
        label = "Calibration"
        calibration = tag("div", tag("h3", label), _grid(calibrated, _columns(calibrated, CALIBRATION), label), about)
    more = facts(rest, "Reward model, more figures", row_names(rest)) if rest else ""
    return section(
        "reward-model",
        title,
        _grid(signals, _columns(signals, ("pearson", "spearman", "ceiling", "n")), title),
        words,
        note(f"Noise ceiling, the highest correlation that any predictor could have: {ceilings}.") if ceilings else "",
        calibration,
        more,
    )


def _classifier(run: Run) -> Html:
    """Errors of the classifier that the sentiment signal comes from."""
    found = run.table("sentiment_classifier")
    if not found:
        return Html("")
    rows = {name: flat_figures(values) for name, values in found.items() if isinstance(values, dict)}
    label, first = "The sentiment classifier", ("auc", "accuracy", "balanced-accuracy", "majority", "undecided")
    words = note(
        f"{found.get('classifier', '')}: its score of the seeker's answer to a proposal. ",
        "Liked: whether its sign says that the seeker liked what was proposed; majority: the share that a constant "
        "sign would get right. An answer need not speak of that, so this is more than the classifier's own error. "
        if "liked" in rows
        else f"Against liked: {found.get('liked')}. ",
        "Mood and utility: as the simulator knows them." if {"mood", "utility"} & rows.keys() else "",
    )
    return tag("div", tag("h3", label), _grid(rows, _columns(rows, first), label) if rows else "", words)


def signals(run: Run) -> Html:
    """What the observed signals say of what the seekers answered after the talk."""
    title = "Signals"
    parts = []
    for outcome in run.table("signals"):
        names = run.table("signals", outcome)
        if found := {name: flat_figures(run.table("signals", outcome, name)) for name in names}:
            label = f"Against {name_of(outcome).lower()}"
            parts.append(tag("div", tag("h3", label), _grid(found, ("pearson", "spearman", "auc", "n"), label)))
    classifier = _classifier(run)
    if not parts:
        none = missing("No table of signals: no answers to compare with in this run.")
        return section("signals", title, none, classifier)
    words = note(
        "Observed signals of the proposals on the validation split, against what the seeker answered after the talk "
        "(any proposed item liked, or seen), which nothing is trained on, and whether they came back."
    )
    others = folded("Against other outcomes", *parts[1:]) if parts[1:] else ""
    return section("signals", title, parts[0], words, others, classifier)


def liked(run: Run) -> Html:
    """Whether policies' odds are higher on proposals that were liked."""
    title = "Liked proposals"
    rows = {row: flat_figures(run.table("liked", row)) for row in run.table("liked")}
    if not rows:
        return section("liked", title, missing("No answers about proposals in this corpus, or none that differ."))
    words = note(
        "Of what people newly proposed in test dialogues: the chance that an item the seeker liked has a higher "
        "log-probability than one they did not (AUC; one half says nothing). PPO over SFT is what alignment added to "
        "the log-probabilities, reward the reward model's score of the act; over any and over known items: of a liked "
        "item over others in its context, drawn evenly or by popularity. The answers were given after the talk, and "
        "nothing is trained on them."
    )
    return section("liked", title, _grid(rows, ("auc", "positives", "n"), title), words)


def replies(run: Run) -> Html:
    """The generated replies, every measure of every row."""
    title = "Replies"
    rows = {row: flat_figures(run.table("text", row)) for row in run.table("text")}
    if not rows:
        return section("text", title, missing("No text figures: no replies have been generated."))
    words: dict[str, list[str]] = {}
    for row, values in rows.items():
        for name, value in values.items():
            if isinstance(value, str):
                words.setdefault(f"{name_of(name)}: {value}", []).append(name_of(row))
    columns = [name for name in _columns(rows) if not any(isinstance(v.get(name), str) for v in rows.values())]
    notes = []
    if counted := next((values["bytes-reference"] for values in rows.values() if "bytes-reference" in values), None):
        words_alone = f"bits per byte are of their words without titles, {number(counted)} bytes whatever the tokenizer"
        notes.append(note(f"Of the human replies, whole ones: perplexity is a token's, {words_alone}."))
    notes += [note(line if len(who) == len(rows) else f"{', '.join(who)}: {line}") for line, who in words.items()]
    return section("text", title, _turned(rows, columns, title), *notes)


def alignment(run: Run) -> Html:
    """The monitors of reward hacking, how far PPO went, and what it ended with."""
    title = "PPO and its health"
    parts = []
    if values := flat_figures(run.table("optimum")):
        parts.append(tag("div", tag("h3", "How far PPO went"), facts(values, "How far PPO went", row_names(values))))
    if scored := {row: flat_figures(run.table("rewards", row)) for row in run.table("rewards") if row != "ppo-sft"}:
        label = "Scores of the evaluated replies"
        parts.append(tag("div", tag("h3", label), _turned(scored, _columns(scored), label)))
    more = Html("")
    if last := flat_figures(run.table("ppo")):
        more = folded("Every figure at the end of PPO", facts(last, "At the end of PPO", row_names(last)))
    watched = monitors.monitors(run) if last else missing("No PPO stage in this run.")
    return section("ppo", title, watched, tag("div", *parts, class_="columns"), more)
