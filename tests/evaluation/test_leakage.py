"""What is ranked stands nowhere in what the model reads: on ReDial itself, by changing everything it must not see."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_task import make_task, tiny_config

from crs_jax.data.dialogue import MENTION, Feedback, Turn
from crs_jax.data.instances import ranking_instances
from crs_jax.evaluation.baselines import Baselines
from crs_jax.evaluation.stage import baseline_scores
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.task import log_popularity


@pytest.fixture(scope="module")
def task(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("leakage")
    config = tiny_config(
        folder, data__dataset="redial", data__dir=str(data_dir / "redial"), data__max_train_dialogues=400,
        data__max_eval_dialogues=60, data__validation_dialogues=60, data__context_tokens=128, data__window=8,
        tokenizer__vocab_size=600,
    )  # fmt: skip
    return make_task(folder, config)


@pytest.fixture(scope="module")
def instances(task):
    found = ranking_instances(task.corpus.test, task.corpus.catalogue)
    assert len(found) > 150
    return found


def test_the_model_reads_only_what_was_said_before(task, instances):
    """Each dialogue ends with the instance's turn, its words and items are others, and so are the questionnaires."""
    where = [(i.dialogue, i.turn) for i in instances]
    found = contexts_at(task, "test", where)
    rng, items = np.random.default_rng(0), task.corpus.catalogue.items
    cut = []
    for d, t in where:
        dialogue = task.corpus.test[d]
        other = items[rng.integers(len(items))].item_id
        after = Turn("recommender", f"Have you seen {MENTION}?", (other,), seconds=9e5)
        feedback = {other: Feedback(suggested=1, seen=1, liked=1)}
        cut.append(dataclasses.replace(dialogue, turns=(*dialogue.turns[:t], after), feedback=feedback))
    corpus = dataclasses.replace(task.corpus, test=tuple(cut))
    encoded = task.tokenizer.encode_dialogues(cut, corpus.catalogue, task.config.data.act_items)
    blind = dataclasses.replace(task, corpus=corpus, encoded={**task.encoded, "test": encoded})
    again = contexts_at(blind, "test", [(n, t) for n, (_, t) in enumerate(where)])
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_a_fresh_target_stands_nowhere_in_the_input(task, instances):
    contexts = contexts_at(task, "test", [(i.dialogue, i.turn) for i in instances])
    offset, named_again = task.layout.item_offset, 0
    for n, instance in enumerate(instances):
        tokens = set(contexts.prompt_CP[n].tolist())
        for target in instance.fresh:
            assert offset + target not in tokens
            assert target not in contexts.features.named[n]
        named_again += sum(offset + target in tokens for target in set(instance.targets) - set(instance.fresh))
    assert named_again > 0  # the check can see a target that is there


def test_no_test_dialogue_or_recommender_in_train(task):
    corpus = task.corpus
    for name in ("train", "validation"):
        fitted = getattr(corpus, name)
        assert not {d.dialogue_id for d in fitted} & {d.dialogue_id for d in corpus.test}
        assert not {d.recommender_id for d in fitted} & {d.recommender_id for d in corpus.test}
        assert not {d.turns for d in fitted} & {d.turns for d in corpus.test}
    assert not {d.recommender_id for d in corpus.train} & {d.recommender_id for d in corpus.validation}
    assert not {d.seeker_id for d in corpus.train} & {d.seeker_id for d in corpus.validation}


def test_item_statistics_come_from_train_alone(task, instances):
    """Rows fitted beside an empty test set, and popularity with other held-out dialogues, are the same."""
    corpus = task.corpus
    blind = dataclasses.replace(task, corpus=dataclasses.replace(corpus, test=(), validation=corpus.test))
    np.testing.assert_array_equal(log_popularity(task), log_popularity(blind))
    contexts = contexts_at(task, "test", [(i.dialogue, i.turn) for i in instances])
    rows = dict(baseline_scores(task, instances, contexts))
    fitted = Baselines.fit(corpus.train, corpus.catalogue, ([], (), None), task.contrast_NE)
    for row in ("popularity", "cooccurrence"):
        np.testing.assert_array_equal(rows[row], getattr(fitted, row).scores(instances, corpus.test), err_msg=row)
    more = Baselines.fit((*corpus.train, *corpus.test), corpus.catalogue, ([], (), None), task.contrast_NE)
    assert not np.array_equal(rows["cooccurrence"], more.cooccurrence.scores(instances, corpus.test))
