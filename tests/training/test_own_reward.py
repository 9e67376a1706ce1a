"""A user's own reward: what it is given, how it joins the signals, what is said of one that does not work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.replies import reply_arrays
from crs_jax.rl.frozen_models import act_scores, predict_signals
from crs_jax.rl.reward import Normaliser, score, stack
from crs_jax.rl.sampling import Replies
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.user_function import load
from crs_jax.runtime.versions import read_log
from crs_jax.training.ppo_stage import build, run_ppo

EXAMPLE = "configs/rewards/concise.py:reward"


def write(folder, text: str) -> str:
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return f"{folder / 'mine.py'}:reward"


def own_task(world, folder, text: str, **changes):
    return world.at(folder, reward__function=write(folder, text), reward__delta=1.0, **changes)


def human(task, count: int):
    where = task.replies("train")[3 : 3 + count]
    tokens, mask = reply_arrays(task, "train", where)
    return (
        where,
        contexts_at(task, "train", where),
        Replies(jnp.asarray(tokens), jnp.asarray(mask), jnp.zeros(tokens.shape)),
    )


def test_it_sees_context_words_and_items(world, tmp_path):
    """Of human replies: number of the items' letters, of context turns and of words, by the corpus itself."""
    task = own_task(
        world, tmp_path,
        "def reward(context, reply, items):\n"
        "    said = sum(len(turn.text.split()) for turn in context if turn.role == 'SEEKER')\n"
        "    return 1000 * len(items) + sum(len(i.title) for i in items) + 0.001 * len(reply.split())\n",
    )  # fmt: skip
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    where, contexts, replies = human(task, 12)
    say, end, _, _ = jax.jit(lambda j, c, r: predict_signals(graphs, j, c, r, True))(frozen_models, contexts, replies)
    assert say.shape == end.shape == (1, 12, 4)
    assert np.isnan(say[0, :, 3]).all()
    for b, (d, t) in enumerate(where):
        turn, catalogue = task.corpus.train[d].turns[t], task.corpus.catalogue
        items = [catalogue.items[row] for row in catalogue.rows(turn.distinct_items)][: task.config.data.act_items]
        words = task.tokenizer.decode_reply(np.asarray(replies.tokens_BR[b]).tolist(), catalogue)[1]
        expected = 1000 * len(items) + sum(len(i.title) for i in items) + 0.001 * len(words.split())
        assert float(end[0, b, 3]) == pytest.approx(expected, rel=1e-5)


def test_it_joins_the_weighted_sum_at_the_end_alone(world, tmp_path):
    task = own_task(world, tmp_path, "def reward(context, reply, items):\n    return float(len(reply)) / 7\n")
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    assert frozen_models.weight_S.tolist() == [1, 1, 1, 1]
    _, contexts, replies = human(task, 8)
    say, end, by_formula, _ = predict_signals(graphs, frozen_models, contexts, replies, True)
    plain = Normaliser(jnp.zeros(4), jnp.ones(4), jnp.float32(1))
    found = score(say, end, by_formula, plain, frozen_models.weight_S, np.inf, 0.0)
    say, end, relevance = say[0], end[0], by_formula["relevance"]
    for b in range(8):
        parts = [end[b, 0], relevance[b], end[b, 2], end[b, 3]]
        known = [float(x) for x in parts if np.isfinite(x)]
        assert float(found.total_B[b]) == pytest.approx(sum(known) * 4 / len(known), rel=1e-5)
        at_act = [float(x) for x in (say[b, 0], relevance[b], say[b, 2]) if np.isfinite(x)]
        assert float(found.act_B[b]) == pytest.approx(sum(at_act) * 4 / len(at_act), rel=1e-5)
    rows = jnp.array([[0, 1]] * 8)
    scores = act_scores(graphs, frozen_models, plain, contexts, rows, task.layout, True, np.inf)
    without = graphs._replace(own=None)
    three = frozen_models._replace(weight_S=jnp.ones(3)), Normaliser(jnp.zeros(3), jnp.ones(3), jnp.float32(1))
    other = act_scores(without, *three, contexts, rows, task.layout, True, np.inf)
    for found, expected in zip(scores, other, strict=True):
        np.testing.assert_allclose(found, np.asarray(expected) * 4 / 3, rtol=1e-4)  # three of four weights, scaled up


@pytest.mark.slow
def test_ppo_learns_it(world, tmp_path):
    """A reward for proposing nothing: acts become emptier, and the log has the mean of it."""
    task = own_task(
        world, tmp_path, "def reward(context, reply, items):\n    return -len(items)\n",
        ppo__iterations=24, ppo__learning_rate=1e-2, ppo__slate_rate=1.0, ppo__query_rate=1.0, ppo__word_kl=0.0,
        ppo__act_kl=0.0, ppo__decision_kl=0.0, reward__alpha=0.0,
        reward__beta=0.0, reward__gamma=0.0, ppo__missing_end_penalty=0.0,
    )  # fmt: skip
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        run_ppo(task, writer, world.sft, world.reward)
    lines = [line for line in read_log(tmp_path / "metrics.jsonl") if "reward/own" in line]
    first, last = ([line["reward/own"] for line in part] for part in (lines[:3], lines[-3:]))
    assert np.mean(last) > np.mean(first) + 0.5
    before, after = (np.mean([line["items_per_reply"] for line in part]) for part in (lines[:1], lines[-3:]))
    assert before > 0.4
    assert after < 0.6 * before


def test_a_traced_one_runs_inside_the_program(world, tmp_path):
    task = own_task(
        world, tmp_path,
        "def reward(contexts, tokens, mask, split):\n    return mask.sum(-1) * 1.0\nreward.traced = True\n",
    )  # fmt: skip
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    _, contexts, replies = human(task, 6)
    two = frozen_models._replace(reward=stack([frozen_models.reward, frozen_models.reward]))
    end = jax.jit(lambda j, c, r: predict_signals(graphs, j, c, r, True)[1])(two, contexts, replies)
    np.testing.assert_array_equal(end[..., 3], [replies.mask_BR.sum(-1)] * 2)  # the same for all reward models


def test_the_example_works(world, tmp_path):
    task = world.at(tmp_path, reward__function=EXAMPLE, reward__delta=0.5)
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    assert frozen_models.weight_S.tolist() == [1, 1, 1, 0.5]
    function, _ = load(EXAMPLE)
    assert function([], "one two three four five six seven eight nine ten eleven twelve", [1]) == 1.0
    assert function([], "no", []) == pytest.approx((1 - 22 / 12) * 0.5)
    assert graphs.own.function(None, "no", []) == function(None, "no", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def other(context, reply, items):\n    return 1\n", "has no function reward"),
        ("import nothing_of_the_kind\n", "importing it failed: ModuleNotFoundError"),
        ("def reward(context, reply, items):\n    return None\n", "returned None, expected a number"),
        ("def reward(context, reply, items):\n    return float('inf')\n", r"expected at most 1e\+06"),
        ("def reward(context, reply, items):\n    return reply.missing\n", "failed on a reply: AttributeError"),
        ("def reward(context):\n    return 1\n", "failed on a reply: TypeError"),
    ],
)
def test_what_does_not_work_is_said_before_anything_runs(world, tmp_path, text, said):
    task = own_task(world, tmp_path, text)
    with pytest.raises(InputError, match=said) as raised:
        build(task, world.sft, world.reward)
    assert "--config.reward.function=" in str(raised.value)


@pytest.mark.parametrize("name", ["no_colon", "missing.py:reward", "crs_jax.nowhere:reward", ":reward"])
def test_names_that_lead_nowhere(name):
    with pytest.raises(InputError, match=r"config\.reward\.function"):
        load(name)


def test_one_that_fails_on_what_is_sampled_ends_the_run_in_one_line(world, tmp_path):
    text = "count = []\ndef reward(context, reply, items):\n    count.append(1)\n    return 1 / (len(count) < 9)\n"
    task = own_task(world, tmp_path, text)
    said = pytest.raises(InputError, match=r"config\.reward\.function=.*failed on a reply: ZeroDivisionError")
    with MetricsWriter(task.workdir, tensorboard=False) as writer, said:
        run_ppo(task, writer, world.sft, world.reward)


def test_a_traced_one_of_another_shape_is_refused(world, tmp_path):
    text = "def reward(contexts, tokens, mask, split):\n    return mask.sum(-1, keepdims=True)\nreward.traced = True\n"
    task = own_task(world, tmp_path, text)
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    _, contexts, replies = human(task, 6)
    with pytest.raises(InputError, match="one number a reply"):
        predict_signals(graphs, frozen_models, contexts, replies, True)


@pytest.mark.slow
def test_another_function_is_another_ppo(world, tmp_path):
    task = own_task(world, tmp_path, "def reward(context, reply, items):\n    return 1.5\n", ppo__iterations=1)
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        run_ppo(task, writer, world.sft, world.reward)
        write(tmp_path, "def reward(context, reply, items):\n    return 2.5\n")
        with pytest.raises(InputError, match="made from another reward function"):
            run_ppo(task, writer, world.sft, world.reward)
