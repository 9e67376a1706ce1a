"""Learning curves of the training stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crs_jax.tools.report.charts import Chart, Line
from crs_jax.tools.report.figures import name_of
from crs_jax.tools.report.html import Html, folded, missing, note, section, tag
from crs_jax.tools.report.workdir import Run, Series

STAGES = {"head": "Act head", "sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "PPO"}
X_LABELS = {"head": "optimizer step", "sft": "optimizer step", "reward": "optimizer step", "ppo": "iteration"}
OPEN = {"head": 1, "sft": 3, "reward": 1, "ppo": 10}  # charts that stand open
MOST_KL = 10.0  # nats a reply that PPO's monitors warn of
# title, unit of y, metrics drawn together; in the order of the page
# drawn as the parts of the reward: all that is logged as reward/NAME but these
NO_PARTS = ("reward/act", "reward/std", "reward/list", "reward/spread")
CHARTS: Mapping[str, Sequence[tuple[str, str, tuple[str, ...]]]] = {
    "sft": (
        ("Loss", "nats", ("loss", "validation/loss")),
        ("Act loss", "nats per act slot", ("act_loss", "validation/act_loss")),
        ("Validation HR@10", "share", ("validation/hr@10",)),
        ("Word loss", "nats per token", ("word_loss", "validation/word_loss")),
        ("Gradient norm", "before clipping", ("grad_norm",)),
        ("Learning rate", "", ("learning_rate",)),
    ),
    "reward": (
        ("Loss", "", ("loss", "validation/loss")),
        ("Gradient norm", "before clipping", ("grad_norm",)),
        ("Learning rate", "", ("learning_rate",)),
    ),
    "ppo": (
        ("Reward", "mean of the replies", ("reward", "validation/reward")),
        ("Way to the optimum", "share, validation", ("validation/share",)),
        (
            "Reward of first items",
            "mean, validation",
            ("validation/reward-sft", "validation/reward-ppo", "validation/reward-optimum", "validation/reward-rerank"),
        ),
        ("Parts of the reward", "mean", ()),
        ("KL to the SFT policy", f"nats a reply; warned of above {MOST_KL:g}", ("kl", "kl/act", "kl/word")),
        ("Replies that recommend", "share", ("recommends",)),
        ("Validation HR@10", "share of new items", ("validation/hr@10",)),
        ("Validation BLEU-4", "greedy replies", ("validation/bleu-4",)),
        ("Reward of proposed lists", "discounted mean", ("reward/list",)),
        ("Spread of the reward models", "standard deviation over the ensemble", ("reward/spread",)),
        ("Entropy of acts", "nats", ("entropy/act",)),
        ("Entropy of words", "nats", ("entropy/word",)),
        ("Reply length", "tokens", ("reply_length",)),
        ("Items in a reply", "", ("items_per_reply",)),
        ("Replies that end", "share", ("ended",)),
        ("Repeated pairs of words", "share", ("health/repetition",)),
        ("Repeated 4-grams", "share, greedy validation replies", ("validation/repetition",)),
        ("Reward and predicted sentiment", "correlation over replies", ("validation/sentiment-reward",)),
        ("Popularity of proposals", "log, centred", ("health/popularity",)),
        ("Distinct items among proposals", "share", ("health/distinct",)),
        ("Clipped ratios", "share of tokens", ("clip_fraction",)),
        ("KL of an iteration", "nats a reply; bounded", ("step_kl/act", "step_kl/word")),
        ("Pace", "times the scheduled rate", ("pace",)),
        ("Value loss", "", ("value_loss",)),
        ("Explained variance", "of the value function", ("explained_variance",)),
        ("Gradient norm", "before clipping", ("grad_norm",)),
        ("Learning rate", "", ("learning_rate",)),
    ),
}
LINE_NAMES = {
    "kl": "all",
    "kl/act": "acts",
    "kl/word": "words",
    "step_kl/act": "acts",
    "step_kl/word": "words",
    "validation/reward-sft": "SFT",
    "validation/reward-ppo": "PPO",
    "validation/reward-optimum": "optimum",
    "validation/reward-rerank": "best item",
}


def _line_name(metric: str, together: Sequence[str]) -> str:
    if metric in LINE_NAMES:
        return LINE_NAMES[metric]
    if metric.startswith("validation/"):
        return "validation"
    if len(together) > 1:
        return metric.removeprefix("reward/") if metric.startswith("reward/") else "train"
    return name_of(metric)


def _chart(
    stage: str,
    title: str,
    unit: str,
    metrics: Sequence[str],
    series: Mapping[str, Series],
    guides: Sequence[tuple[str, float]] = (),
) -> Html | None:
    present = [m for m in metrics if m in series and any(y is not None for _, y in series[m].points)]
    if not present:
        return None
    lines = [Line(_line_name(m, metrics), series[m].points, metrics.index(m) + 1) for m in present]
    return Chart(title, unit, X_LABELS.get(stage, "step"), lines, guides if "kl" in metrics else ()).figure()


def kl_budget(run: Run) -> list[tuple[str, float]]:
    """Dashed lines of the chart of KL: the adaptive controllers' targets, or the monitors' bound once it is near."""
    targets = [(part, run.setting(f"ppo.{name}_kl_target", 0.0)) for part, name in (("acts", "act"), ("words", "word"))]
    found = [(f"target of {part}", float(y)) for part, y in targets if isinstance(y, (int, float)) and y > 0]
    drawn = run.series.get("ppo", {}).get("kl")
    most = max((y for _, y in drawn.points if y is not None), default=0.0) if drawn else 0.0
    return found or ([("warned of", MOST_KL)] if most > MOST_KL / 2 else [])


def reward_by_kl(series: Mapping[str, Series]) -> Html | None:
    """What the KL bought: the reward over the KL to SFT, of validation replies at PPO's checks."""
    kl, reward = (
        dict(series[name].points) if name in series else {} for name in ("validation/kl", "validation/reward")
    )
    points = [(x, reward[step]) for step, x in kl.items() if x is not None and reward.get(step) is not None]
    if len(points) < 2:
        return None
    return Chart("Reward by KL spent", "validation, at checks", "KL, nats a reply", [Line("reward", points)]).figure()


def _stage_curves(stage: str, series: Mapping[str, Series], guides: Sequence[tuple[str, float]]) -> Html:
    parts = tuple(name for name in series if name.startswith("reward/") and name not in NO_PARTS)
    specified = [(title, unit, metrics or parts) for title, unit, metrics in CHARTS.get(stage, ())]
    charts = [_chart(stage, title, unit, metrics, series, guides) for title, unit, metrics in specified]
    if stage == "ppo":
        charts.insert(3, reward_by_kl(series))
    known = {metric for _, _, metrics in specified for metric in metrics}
    others = []
    for name in series:
        base = name.removeprefix("validation/")
        if name in known or (base != name and base in series and base not in known):
            continue
        pair = (name, f"validation/{name}") if base == name else (name,)
        others.append(_chart(stage, name_of(name), "", pair, series))
    shown, more = ([c for c in group if c] for group in (charts, others))
    if not shown:
        shown, more = more, []
    shown, more = shown[: (most := OPEN.get(stage, 3))], shown[most:] + more
    return tag(
        "div",
        tag("h3", STAGES.get(stage, name_of(stage))),
        tag("div", *shown, class_="charts"),
        folded(f"{len(more)} more curve{'s' * (len(more) > 1)}", tag("div", *more, class_="charts")) if more else "",
    )


def curves(run: Run) -> Html:
    """The section with learning curves of every stage that logged something."""
    title = "Learning curves"
    absent = [STAGES[stage] for stage in CHARTS if stage not in run.series]
    present = [stage for stage in STAGES if stage in run.series] + [s for s in run.series if s not in STAGES]
    if not present:
        return section("curves", title, missing("No learning curves: metrics.jsonl is missing or empty."))
    words = note("Pale: every logged step. Solid: centred moving average over a twentieth of the steps.")
    gone = missing(f"Nothing logged by: {', '.join(absent)}.") if absent else ""
    stages = [_stage_curves(stage, run.series[stage], kl_budget(run)) for stage in present]
    return section("curves", title, words, gone, *stages)
