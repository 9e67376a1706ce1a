"""A policy that may read what SFT could not: it starts as the SFT policy, and PPO moves what reads the evidence."""

import numpy as np
import pytest
from tiny_task import fresh_models

from crs_jax.evaluation.policies import ranking_scores
from crs_jax.inputs.contexts import contexts_at
from crs_jax.models.query import KINDS, MATCHES
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_log
from crs_jax.training.ppo_stage import build, open_evidence, run_ppo


@pytest.fixture
def deaf(world, tmp_path):
    task = world.at(
        tmp_path, model__leave_out=KINDS, ppo__evidence="all", ppo__iterations=3, ppo__learning_rate=1e-3,
        ppo__query_rate=20.0,
    )  # fmt: skip
    return task, *fresh_models(task)


def test_it_starts_as_the_reference_and_learns_to_read(deaf):
    task, sft, reward = deaf
    opened = open_evidence(task, sft)
    contexts = contexts_at(task, "validation", task.replies("validation")[:20])
    both = [ranking_scores(task, model, contexts, "x") for model in (sft, opened)]
    np.testing.assert_allclose(*both, atol=2e-5)
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        aligned = run_ppo(task, writer, sft, reward)  # its own check: KL 0 in the first iteration
    lines = [line for line in read_log(task.workdir / "metrics.jsonl") if "kl" in line]
    assert abs(lines[0]["kl"]) < 1e-3
    first = next(line for line in read_log(task.workdir / "metrics.jsonl") if "validation/kl" in line)
    assert first["step"] == 0
    assert abs(first["validation/kl"]) < 1e-3
    gain = np.asarray(aligned.policy[1]["query"]["gain"])
    assert all(gain[MATCHES.index(match)] != 0 for match in ("text", "named", "named attributes", "near"))
    # The policy that evaluation gets reads the features: another text, another ranking.
    silent = contexts._replace(features=contexts.features._replace(text=np.zeros_like(contexts.features.text)))
    assert (
        np.abs(
            ranking_scores(task, aligned.policy, silent, "x") - ranking_scores(task, aligned.policy, contexts, "x")
        ).max()
        > 1e-4
    )
    assert np.abs(ranking_scores(task, sft, silent, "x") - both[0]).max() == 0


def test_the_same_evidence_is_the_same_graph(deaf):
    task, sft, reward = deaf
    with task.config.unlocked():
        task.config.ppo.evidence = "same"
    graphs, _, _ = build(task, sft, reward)
    assert graphs.aligned == graphs.policy
