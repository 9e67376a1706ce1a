"""The share of replies that recommend is of sampled ones, as people's is; words are compared as they are generated."""

import dataclasses

import numpy as np
import pytest
from tiny_task import change, fresh_models, make_task, tiny_config

from crs_jax.evaluation import stage


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_the_share_beside_peoples_is_of_sampled_replies(tmp_path, monkeypatch, temperature):
    """A policy that recommends in one context of four: greedy replies never do."""
    task = make_task(tmp_path, tiny_config(tmp_path / "cache"))
    config = change(task.config, evaluation__samples=0, evaluation__temperature=temperature, ppo__temperature=0.9)
    task = dataclasses.replace(task, config=config)
    t, model, asked = task.tokenizer, fresh_models(task)[0], []
    word = t.encode_text(" film")[:1]

    def replies(task, model, contexts, temperature, *_):
        asked.append(temperature)
        tokens_BR = np.full((len(contexts.prompt_CP), 6), t.pad, np.int32)
        tokens_BR[:, :3] = [t.say, *word, t.end]
        if temperature == 0.9:
            tokens_BR[::4, :5] = [t.rec, t.item_offset, t.say, *word, t.end]
        return tokens_BR, tokens_BR != t.pad

    monkeypatch.setattr(stage, "generate", replies)
    text, _, paired, _ = stage.reply_rows(task, {"sft": model, "ppo": model}, None)
    count = len(task.replies("test"))
    people = np.array([bool(task.corpus.test[d].turns[k].items) for d, k in task.replies("test")])
    assert asked == [temperature, 0.9] * 2
    for row in ("sft", "ppo"):
        assert text[row]["recommends"] == pytest.approx(len(range(0, count, 4)) / count)
        assert text[row]["recommends-reference"] == pytest.approx(people.mean())
        assert text[row]["recommends-agreement"] == pytest.approx(1 - people.mean())
    assert paired["text"]["recommends"] == {"value": 0.0, "low": 0.0, "high": 0.0}
