"""The evaluation stage: every row on the same held-out instances, as the tree that becomes `metrics.json`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from crs_jax.data.corpora import is_simulated
from crs_jax.data.instances import ranking_instances
from crs_jax.evaluation.baselines import Baselines
from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.evaluation.lengths import by_length
from crs_jax.evaluation.liked import liked_table, reward_table
from crs_jax.evaluation.optimum import optimum
from crs_jax.evaluation.pairs import make_pairs
from crs_jax.evaluation.policies import Judged, generate, judge_replies, ranking_scores, reference_nll
from crs_jax.evaluation.published import published_rows
from crs_jax.evaluation.ranking import (
    paired_difference,
    protocol_dialogues,
    ranks_by_protocol,
    success_rate_and_rdl,
    summarise,
)
from crs_jax.evaluation.samples import sample_lines
from crs_jax.evaluation.text import bits_per_byte, bleu_difference, text_metrics
from crs_jax.evaluation.utility import true_utility
from crs_jax.features.context import context_vectors
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.replies import whole_replies
from crs_jax.inputs.task import Task
from crs_jax.rl.contexts import take
from crs_jax.rl.frozen_models import Aligned, Model
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.progress import say
from crs_jax.signals.registry import rewards

Tree = dict[str, Any]


def data_counts(task: Task, instances: list) -> Tree:
    """What was trained and evaluated on."""
    fresh = [instance for instance in instances if instance.fresh]
    corpus = task.corpus
    return {
        "dataset": corpus.name,
        "train_dialogues": len(corpus.train),
        "validation_dialogues": len(corpus.validation),
        "test_dialogues": len(corpus.test),
        "items": len(corpus.catalogue),
        "instances": len(instances),
        "targets": sum(len(i.targets) for i in instances),
        "distinct_items": len({t for i in instances for t in i.targets}),
        "fresh_instances": len(fresh),
        "fresh_targets": sum(len(i.fresh) for i in instances),
        "fresh_distinct_items": len({t for i in instances for t in i.fresh}),
        "train_tokens": sum(len(turn) for dialogue in task.encoded["train"] for turn in dialogue),
        "skipped": len(corpus.skipped),
    }


def rank_all(task: Task, models: dict[str, Model], aligned: Aligned | None = None) -> Tree:
    """The sections `ranking`, `paired`, `by_length`, `success` (SR/RDL), `data`, `liked` and `optimum`, test split."""
    e, corpus = task.config.evaluation, task.corpus
    instances = ranking_instances(corpus.test, corpus.catalogue)
    if not instances:
        raise InputError(f"{corpus.name}: no recommender message of the test split names an item; nothing to rank")
    where = [(i.dialogue, i.turn) for i in instances]
    pairs = make_pairs(instances, corpus.test, corpus.catalogue)
    contexts = contexts_at(task, "test", where)
    ranking, ranks, success = {}, {}, {}

    def add(row: str, scores_IN: np.ndarray) -> None:
        ranks[row] = ranks_by_protocol(scores_IN, pairs, e.negatives, task.config.seed)
        dialogues = protocol_dialogues(pairs)
        ranking[row] = {
            targets: {
                pool: summarise(r, dialogues[targets], tuple(e.ks), e.bootstrap, task.config.seed)
                for pool, r in both.items()
            }
            for targets, both in ranks[row].items()
        }
        success[row] = success_rate_and_rdl(
            scores_IN, pairs, corpus.test, corpus.catalogue, bootstrap=e.bootstrap, seed=task.config.seed
        )

    scores = {row: ranking_scores(task, model, contexts, f"ranking, {row}") for row, model in models.items()}
    reached: Tree = {}
    if aligned is not None and e.optimum_acts:
        more, reached = optimum(task, aligned, models, contexts, np.array([d for d, _ in where]))
        scores |= more
    for row, scores_IN in scores.items():
        add(row, scores_IN)
    liked = liked_table(instances, corpus.test, corpus.catalogue, scores, e.bootstrap)
    if aligned is not None:
        liked |= reward_table(task, aligned, instances, corpus.test, contexts)
    for row, scores_IN in baseline_scores(task, instances, contexts):
        add(row, scores_IN)
    dialogues = protocol_dialogues(pairs)
    paired = {
        f"{a}-{b}": {
            targets: {
                pool: paired_difference(
                    ranks[a][targets][pool], ranks[b][targets][pool], dialogues[targets],
                    tuple(e.ks), e.bootstrap, task.config.seed,
                )
                for pool in ("full", "sampled")
            }
            for targets in ("all", "fresh")
        }
        for a, b in compared(list(models), list(ranks))
    }  # fmt: skip
    own = {row: ranks[row] for row in models}
    lengths = by_length(instances, pairs, own, task.config.data.window, tuple(e.ks), e.bootstrap, task.config.seed)
    return {
        "data": data_counts(task, instances),
        "ranking": ranking,
        "paired": paired,
        "by_length": lengths,
        "success": success,
        "liked": liked,
        "optimum": reached,
    }


def compared(models: list[str], rows: list[str]) -> list[tuple[str, str]]:
    """Pairs of rows whose difference is tested: each model against those before it and against every other row."""
    earlier = [(a, b) for i, a in enumerate(models) for b in models[:i]]
    return earlier + [(a, b) for a in models for b in rows if b not in models]


def baseline_scores(task: Task, instances: list, contexts: Any):
    """(row, scores) of the baselines, fitted on train, their mix tuned on validation."""
    corpus = task.corpus
    held = ranking_instances(corpus.validation, corpus.catalogue)
    vectors = None
    if held:
        vectors = context_vectors(
            corpus.validation, [(i.dialogue, i.turn) for i in held], corpus.catalogue, task.contrast_NE, task.embed,
            task.config.data.window,
        )  # fmt: skip
    baselines = Baselines.fit(corpus.train, corpus.catalogue, (held, corpus.validation, vectors), task.contrast_NE)
    test_vectors = {"text_BE": contexts.features.text, "named_BE": contexts.features.named_mean}
    yield from baselines.rows(instances, corpus.test, test_vectors)


def mean_with_interval(values: np.ndarray, groups: np.ndarray, bootstrap: int) -> dict[str, float]:
    """Mean of the finite values with a 95 % interval over dialogues."""
    keep = np.isfinite(values)
    if not keep.any():
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    kept = values[keep].astype(np.float64)
    means_R = resample(groups[keep], bootstrap, 0).means(kept[:, None])[:, 0]
    return interval(kept.mean(), means_R)


def reply_rows(task: Task, models: dict[str, Model], aligned: Aligned | None) -> tuple[Tree, Tree, Tree, list[Tree]]:
    """Text metrics, mean rewards and health of replies, their paired differences by section, and samples, on one seeded
    choice of test replies.

    Beside `text_metrics` stand likelihoods of the human replies, whole ones whatever `config.data.reply_tokens` is:
    `perplexity` of words, titles and `<|end|>`, `act-perplexity` of acts, both a token; and `bits-per-byte` of the
    words alone, without titles and `<|end|>`, over the bytes that they spell, `bytes-reference` (a word's space is one
    of them). These bytes are the same for every tokenizer. A title that an act has no room for is spelled in words,
    and counts among them.

    `recommends` is the share of replies that recommend where these are sampled as in training; beside people's, a share
    of greedy ones would count the contexts in which recommending is likelier than not. All else in `text`, with
    `recommends-agreement`, is of replies at `config.evaluation.temperature`.
    """
    e, seed = task.config.evaluation, task.config.seed
    where = task.replies("test")
    if e.generate:
        chosen = np.random.default_rng([seed, 13]).permutation(len(where))[: e.generate]
        where = [where[i] for i in sorted(chosen)]
    contexts = contexts_at(task, "test", where)
    human = whole_replies(task, "test", where)
    spelled = [task.tokenizer.text_of(tokens_R[mask_R]) for tokens_R, mask_R in zip(*human, strict=True)]
    catalogue, dialogues = task.corpus.catalogue, task.corpus.test
    references = [dialogues[d].turns[t].render(catalogue.names) for d, t in where]
    recommends = np.array([bool(dialogues[d].turns[t].items) for d, t in where])
    group_B = np.array([d for d, _ in where])
    text: Tree = {}
    rewards: Tree = {}
    judged: dict[str, Judged] = {}
    greedy: dict[str, np.ndarray] = {}
    said: dict[str, list[str]] = {}
    proposing: dict[str, np.ndarray] = {}
    for row, model in models.items():
        tokens_BR, _ = generate(task, model, contexts, e.temperature, seed + 21, f"replies, {row}")
        greedy[row] = tokens_BR
        decoded = [task.tokenizer.decode_reply(tokens, catalogue) for tokens in tokens_BR]
        nll = reference_nll(task, model, contexts, human, f"likelihood, {row}")
        proposes = np.array([bool(items) for items, _ in decoded])
        said[row] = [words for _, words in decoded]
        sampled = generate(task, model, contexts, task.config.ppo.temperature, seed + 22, f"samples, {row}")
        proposing[row] = np.array([bool(task.tokenizer.decode_reply(tokens, catalogue)[0]) for tokens in sampled[0]])
        text[row] = {
            **text_metrics(said[row], references),
            "perplexity": math.exp(nll["word_nll"] / max(nll["word_tokens"], 1)),
            "act-perplexity": math.exp(nll["act_nll"] / max(nll["act_tokens"], 1)),
            "bits-per-byte": bits_per_byte(nll["text_nll"], spelled),
            "bytes-reference": sum(map(len, spelled)),
            "recommends": float(proposing[row].mean()),
            "recommends-reference": float(recommends.mean()),
            "recommends-agreement": float((proposes == recommends).mean()),
        }
        if aligned is not None:
            judged[row] = judge_replies(task, aligned, model, contexts, *sampled, f"rewards, {row}")
            rewards[row] = _rewards_of(judged[row], group_B, e.bootstrap, task.config.reward.ensemble > 1)
    shown = np.random.default_rng([seed, 17]).permutation(len(where))[: e.samples]
    shown = np.sort(shown)
    lines = sample_lines(
        task,
        [where[i] for i in shown],
        take(contexts, shown),
        models,
        {row: tokens[shown] for row, tokens in greedy.items()},
        {row: _rows(j, shown) for row, j in judged.items()},
    )
    return text, rewards, _paired(said, proposing, judged, references, group_B, e.bootstrap), lines


def _rewards_of(j: Judged, group_B: np.ndarray, bootstrap: int, ensemble: bool) -> Tree:
    """Mean rewards of sampled replies, KL in nats a reply, entropies in nats a token, lengths and shares."""
    columns = dict(zip(rewards(), j.signal_BS.T, strict=False)) | ({"spread": j.spread_B} if ensemble else {})
    columns = {"reward": j.reward_B, **columns, "kl": (j.act_kl_B + j.word_kl_B).astype(np.float64)}
    return {
        **{name: mean_with_interval(column_B, group_B, bootstrap) for name, column_B in columns.items()},
        "kl-act": float(j.act_kl_B.mean()),
        "kl-word": float(j.word_kl_B.mean()),
        "entropy-act": float(j.act_entropy_B.sum() / max(j.act_tokens_B.sum(), 1)),
        "entropy-word": float(j.word_entropy_B.sum() / max(j.word_tokens_B.sum(), 1)),
        "entropy": float((j.act_entropy_B + j.word_entropy_B).sum() / max(j.mask_BR.sum(), 1)),
        "length": float(j.mask_BR.sum(-1).mean()),
        "ended": float(j.ended_B.mean()),
    }


def _paired(
    said: dict[str, list[str]],
    proposing: dict[str, np.ndarray],
    judged: dict[str, Judged],
    references: list[str],
    group_B: np.ndarray,
    bootstrap: int,
) -> Tree:
    """PPO minus SFT on the same contexts, by section: of the words and whether they recommend, and of the rewards."""
    paired: Tree = {}
    if {"sft", "ppo"} <= said.keys():
        gap_B = proposing["ppo"].astype(np.float64) - proposing["sft"]
        paired["text"] = {
            "bleu-4": bleu_difference(said["ppo"], said["sft"], references, group_B, bootstrap),
            "recommends": mean_with_interval(gap_B, group_B, bootstrap),
        }
    if {"sft", "ppo"} <= judged.keys():
        gap_B = (judged["ppo"].reward_B - judged["sft"].reward_B).astype(np.float64)
        paired["rewards"] = {"reward": mean_with_interval(gap_B, group_B, bootstrap)}
    return paired


def _rows(judged: Judged, index: np.ndarray) -> Judged:
    return Judged(*(a[index] for a in judged))


def run_evaluate(task: Task, models: dict[str, Model], aligned: Aligned | None) -> tuple[Tree, list[Tree]]:
    """All metrics of the models on the test split.

    Args:
      task: the data.
      models: `sft` and, where it exists, `ppo`; or `init` alone, a model that was not trained here.
      aligned: what scores replies; None before PPO has run.

    Returns:
      The tree of `metrics.json` less what the pipeline adds, and the lines of `samples.jsonl`.
    """
    out = {name: found for name, found in rank_all(task, models, aligned).items() if found}
    out["text"], rewards, paired, samples = reply_rows(task, models, aligned)
    if paired:
        out["paired"]["ppo-sft"] |= paired
    if rewards:
        out["rewards"] = rewards
    if is_simulated(task.corpus.name):
        out["simulator"] = true_utility(task, models)
    published = published_rows(task.corpus.name)
    if published:
        out["published"] = published
    data = out["data"]
    say(f"evaluated {', '.join(models)} on {data['instances']} instances, {data['targets']} targets")
    return out, samples
