"""Episodes of several turns: grown contexts are those of the data pipeline, the seeker's model learns, PPO trains."""

import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import io_callback
from ml_collections import ConfigDict
from tiny_task import change, embed

from crs_jax.config import validate
from crs_jax.data import simulated_words as words
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Turn
from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.contexts import contexts_at
from crs_jax.models.likelihood import FirstToken
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.forward import policy_likelihood
from crs_jax.rl.reward import Scores
from crs_jax.rl.sampling import Replies, sample
from crs_jax.rl.scoring import TokenLikelihood, TokenMasks
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_log
from crs_jax.training import ppo, ppo_stage, rollout, seeker
from crs_jax.training.batch import RolloutBatch
from crs_jax.training.episodes import Answer, Continuation, Episodes
from crs_jax.training.ppo_stage import run_ppo
from crs_jax.training.seeker import model_seeker, run_seeker, seeker_packer, simulated_seeker
from crs_jax.training.turns import advantages, as_rows, by_episode, by_turn, go_on, joined


def quick(jitted):
    """The function, compiled with little optimisation: that takes half as long, and here everything is small."""
    made = {}

    def run(*arguments):
        if not made:
            options = {"xla_backend_optimization_level": 0}
            made["program"] = jitted.lower(*arguments).compile(compiler_options=options)
        return made["program"](*arguments)

    return run


@pytest.fixture(scope="module")
def episodes(world):
    return Episodes(world.task, "train")


TURNS = {
    "ppo__turns": 2, "ppo__validation_contexts": 0, "ppo__epochs": 1, "ppo__iterations": 3, "ppo__checks_a_run": 3,
    "ppo__act_kl_target": 0.0, "ppo__word_kl_target": 0.0, "ppo__group_baseline": False, "ppo__turn_discount": 0.0,
    "seeker__epochs": 8.0, "seeker__learning_rate": 1e-2, "log_every": 100,
}  # fmt: skip


def logged(task, count=3):
    """(dialogue, turn) of replies after which seeker, recommender, seeker and recommender follow in the log."""
    wanted = [RECOMMENDER, SEEKER, RECOMMENDER, SEEKER, RECOMMENDER][:count]
    found = []
    for d, t in task.replies("train"):
        if [turn.role for turn in task.corpus.train[d].turns[t : t + count]] == wanted:
            found.append((d, t))
    return found


def said_of(task, where, count, width=120):
    """What was said in the log from the given turns on, as the rollout holds it."""
    said = np.full((len(where), count, width), task.tokenizer.pad, np.int32)
    for b, (d, t) in enumerate(where):
        for u in range(count):
            body = task.encoded["train"][d][t + u][1 if u % 2 else 2 :]
            said[b, u, : len(body)] = body
    return said


@pytest.mark.parametrize("turns", [2, 3])
def test_an_episode_that_repeats_the_log_has_the_logs_contexts(world, episodes, turns):
    """Tokens, windows, vectors, items, attributes, people: as the data pipeline makes them of the logged dialogue."""
    task, count = world.task, 2 * (turns - 1)
    where = logged(task, count + 1)
    assert len(where) > 10
    found = episodes.contexts(np.array(where), said_of(task, where, count))
    wanted = contexts_at(task, "train", [(d, t + count) for d, t in where])
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert (wanted.mask_CP.all(1)).any()  # some were trimmed from the old end
    assert (wanted.features.named >= 0).any()
    # Another turn may be open as well: what was not said yet is padding.
    padded = np.concatenate([said_of(task, where, count), np.full((len(where), 2, 120), task.tokenizer.pad)], 1)
    jax.tree.map(np.testing.assert_array_equal, episodes.contexts(np.array(where), padded), wanted)


def test_contexts_need_no_device_and_their_encoder_is_loaded_before(world):
    """A program that waits for its host function leaves it no device: on one core everything would wait for ever."""
    loaded = []

    def on_host(texts):
        loaded.append(texts)
        return embed(texts)

    task = dataclasses.replace(world.task, embed_on_host=on_host)
    episodes = Episodes(task, "train")
    assert loaded
    where = logged(task, 3)[:4]
    said = said_of(task, where, 2)
    said[:, 1, 1] = said[:, 1, 0]  # words that nobody has said before
    with jax.transfer_guard("disallow_explicit"):
        episodes.contexts(np.array(where), said)
        episodes.prompts(np.array(where), said[:, :1])
    assert len(loaded) > 1


def test_prompts_of_seekers_are_windows_too(world, episodes):
    """By a loop over lists: the last k utterances, trimmed from the old end, and `<|seeker|>`."""
    task, t = world.task, world.task.tokenizer
    where = logged(task, 2)
    found, mask = episodes.prompts(np.array(where), said_of(task, where, 1))
    P, k = task.config.data.context_tokens, task.config.data.window
    for b, (d, turn) in enumerate(where):
        spoken = [token for said in task.encoded["train"][d][: turn + 1][-k:] for token in said]
        row = [*spoken[max(0, len(spoken) - P + 1) :], t.seeker]
        assert found[b].tolist() == [t.pad] * (P - len(row)) + row
        assert mask[b].sum() == len(row)


def test_a_group_starts_from_its_context_and_an_unended_reply_gets_its_end(world, episodes):
    task, t = world.task, world.task.tokenizer
    where = logged(task, 3)[:2]
    said = np.full((4, 1, 6), t.pad, np.int32)
    said[:, 0, :4] = [t.item_offset + 3, t.say, 5, 6]
    dialogues, encoded = episodes.dialogues(np.array(where), said)
    for b, (d, at) in enumerate([where[0], where[0], where[1], where[1]]):
        assert encoded[b] == [
            *task.encoded["train"][d][:at],
            [t.recommender, t.rec, t.item_offset + 3, t.say, 5, 6, t.end],
        ]
        item = task.corpus.catalogue.items[3].item_id
        assert dialogues[b].turns[-1].items == (item,)  # proposed, though the words do not name it
        assert dialogues[b].turns[:-1] == task.corpus.train[d].turns[:at]


def test_turns_of_tokens(world):
    """Every logged message is what its tokens say, and no words can pass for the mention of an item."""
    task, t, catalogue = world.task, world.task.tokenizer, world.task.corpus.catalogue
    for d, dialogue in enumerate(task.corpus.train):
        for turn, tokens in zip(dialogue.turns, task.encoded["train"][d], strict=True):
            if len(turn.distinct_items) <= task.config.data.act_items:
                assert t.decode_turn(tokens, catalogue) == dataclasses.replace(turn, seconds=None)
    fake = [t.seeker, *t.encode_text(f" a {MENTION} b"), t.item_offset, t.end, t.pad]
    assert t.decode_turn(fake, catalogue) == Turn(SEEKER, f"a  b {MENTION}", (catalogue.items[0].item_id,))


def scripted(tokens, layout, R):
    """A seeker who always says the same."""
    row = jnp.array([*tokens, layout.end, *[layout.pad] * (R - len(tokens) - 1)], jnp.int32)

    def answer(params, frozen, where_C2, said_BUR, number, key):
        B = len(said_BUR)
        return Answer(jnp.broadcast_to(row, (B, R)), jnp.zeros(B, bool))

    return answer


def test_the_second_turn_is_sampled_and_scored_in_the_context_built_by_hand(world, episodes):
    task, (graph, params, frozen), t = world.task, world.sft, world.task.tokenizer
    R, where = task.config.data.reply_tokens, logged(task, 1)[:12]
    text = " I want a comedy movie."
    script = t.encode_text(text)[: R - 1]
    continuation = Continuation(episodes, scripted(script, task.layout, R))
    first = jax.tree.map(jnp.asarray, contexts_at(task, "train", where))

    def one_turn(params, contexts, where, key):
        """Replies, and the contexts after the seeker's answers to them."""
        replies = sample(
            nnx.merge(graph, params, frozen), contexts.prompt_CP, contexts.mask_CP, key, group=1, reply_tokens=R,
            features=contexts.features, block=4,
        )  # fmt: skip
        answer = continuation.seeker(None, None, where, replies.tokens_BR[:, None], 1, key)
        return replies, continuation.grown(contexts, where, jnp.stack([replies.tokens_BR, answer.tokens_BR], 1))

    roll = quick(jax.jit(one_turn))
    replies, grown = roll(params, first, jnp.array(where), jax.random.key(3))
    more, _ = roll(params, grown, jnp.array(where), jax.random.key(4))
    # By hand: the dialogue with the reply and the answer as two more messages, through the data pipeline.
    catalogue, dialogues, encoded = task.corpus.catalogue, [], []
    for b, row in enumerate(np.asarray(replies.tokens_BR)):
        d, at = where[b]
        body = [int(x) for x in row if x != t.pad]
        body += [] if body[-1] == t.end else [t.end]
        act = [x - t.item_offset for x in body[: body.index(t.say)]]
        spoken = list(body[body.index(t.say) + 1 : -1])
        mentions = [x - t.item_offset for x in spoken if x >= t.item_offset]
        mentions += [x for x in act if x not in mentions]
        plain = t.decode_text([x for x in spoken if x < t.num_words]).replace(MENTION, "")
        reply = Turn(RECOMMENDER, plain + MENTION * len(mentions), tuple(catalogue.items[x].item_id for x in mentions))
        said = Turn(SEEKER, t.decode_text(script).strip())
        base = task.corpus.train[d]
        dialogues.append(dataclasses.replace(base, turns=(*base.turns[:at], reply, said)))
        encoded.append([*task.encoded["train"][d][:at], [t.recommender, t.rec, *body], [t.seeker, *script, t.end]])
    corpus = dataclasses.replace(task.corpus, train=tuple(dialogues))
    by_hand = dataclasses.replace(task, corpus=corpus, encoded={"train": encoded})
    wanted = contexts_at(by_hand, "train", [(b, len(d.turns)) for b, d in enumerate(dialogues)])
    jax.tree.map(np.testing.assert_array_equal, grown, wanted)
    proposed = np.asarray(replies.tokens_BR[:, 0]) >= t.item_offset
    assert proposed.any()
    assert (grown.features.named[proposed, 0] >= 0).all()
    score = quick(jax.jit(lambda params, *given: policy_likelihood(graph, params, frozen, *given, 1.0)))
    scored = score(params, jax.tree.map(jnp.asarray, wanted), more)
    assert np.abs(scored.logp_BR).max() > 1
    np.testing.assert_allclose(scored.logp_BR, more.logp_BR, atol=1e-4)


def unigram_loss(rows) -> float:
    """Nats a token of the best model that knows frequencies alone."""
    count = np.bincount(rows["word_target_RW"][rows["word_mask_RW"]])
    share = count[count > 0] / count.sum()
    return float(-(share * np.log(share)).sum())


def test_slots_of_the_seekers_side_equal_a_loop(world):
    task, t = world.task, world.task.tokenizer
    rows = seeker_packer(task, "train").pack()
    found = set()
    for r, w in zip(*np.nonzero(rows["word_mask_RW"]), strict=True):
        at, row = rows["word_at_RW"][r, w], rows["tokens_RT"][r]
        target = int(rows["word_target_RW"][r, w])
        if target >= t.item_offset:
            target = t.item_offset + int(rows["word_items_RWM"][r, w, target - t.item_offset])
        assert row[at + 1] == target
        found.add((int(rows["dialogue_RT"][r, at]), int(rows["utterance_RT"][r, at]), target))
    expected, skipped = set(), 0
    for d, dialogue in enumerate(task.encoded["train"]):
        act = []
        for u, turn in enumerate([*dialogue, *([[t.seeker, t.end]] if dialogue[-1][0] == t.recommender else [])]):
            if turn[0] == t.recommender:
                act = turn[2 : turn.index(t.say)]
                continue
            bears = [x for x in turn[1:] if x < t.item_offset or x in act]
            skipped += len(turn) - 1 - len(bears)
            expected |= {(d, u, x) for x in bears}
    assert found == expected
    assert skipped > 5
    assert any(target >= t.item_offset for *_, target in found)
    assert not rows["act_mask_RA"].any()


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory):
    """The seeker's model, fitted for a few epochs: the task with it and its parameters."""
    task = world.at(tmp_path_factory.mktemp("seeker"), **TURNS)
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        return task, run_seeker(task, writer, world.sft)


def test_a_killed_fit_of_the_seeker_ends_with_the_same_bits(world, fitted, tmp_path, monkeypatch):
    task, whole = world.at(tmp_path, **TURNS), fitted[1]
    batches, saves = seeker.batches, []

    def killed(*arguments):
        for number, batch in enumerate(batches(*arguments), 1):
            if number == 30 and not saves:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(seeker, "batches", killed)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(KeyboardInterrupt):
            run_seeker(task, writer, world.sft)
        saves.append((tmp_path / "checkpoints" / "seeker").exists())
        resumed = run_seeker(task, writer, world.sft)
        loaded = run_seeker(task, writer, world.sft)
    for a, b, c in zip(*map(jax.tree.leaves, (whole, resumed, loaded)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes() == np.asarray(c).tobytes()
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(InputError, match="made from another choice of dialogues than this run's"),
    ):
        run_seeker(world.at(tmp_path, ppo__unseen=False, **TURNS), writer, world.sft)


def test_the_seekers_model_beats_a_unigram_on_dialogues_it_was_not_fitted_on(world, fitted):
    task, _ = fitted
    lines = [line for line in read_log(task.workdir / "metrics.jsonl") if line["stage"] == "seeker"]
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
    bound = unigram_loss(seeker_packer(task, "validation").pack())
    assert len(losses) == 8
    assert losses[0] > bound > min(losses) + 0.3


def test_it_answers_in_words_and_names_what_was_proposed_alone(world, fitted, episodes):
    task, params = fitted
    params = {**params, "items": {**params["items"], "bias": params["items"]["bias"] + 6.0}}  # so that items are named
    where = logged(task, 2)[:12]
    R, t = task.config.data.reply_tokens, task.tokenizer
    said = jnp.asarray(said_of(task, where, 1)[..., :R])
    answer, turn = quick(jax.jit(model_seeker(task, episodes, world.sft[0]))), jnp.int32(1)
    tokens = np.concatenate(
        [answer(params, world.sft[2], jnp.array(where), said, turn, jax.random.key(n)).tokens_BR for n in range(6)]
    )
    named = 0
    for b, row in enumerate(tokens):
        act = [x for x in np.asarray(said[b % len(where), 0]) if x >= t.item_offset]
        body = row[row != t.pad]
        assert ((body < t.num_words) | (body == t.end) | np.isin(body, act)).all()
        assert t.end not in body[:-1]
        named += int((body >= t.item_offset).sum())
    assert named > 0
    assert 0.2 < (tokens == t.end).any(1).mean() < 1


@pytest.fixture(scope="module")
def compiled():
    return {"mode": "talk", "make_iteration": ppo.make_iteration, "make_reference_signals": ppo.make_reference_signals}


@pytest.fixture
def run(world, fitted, compiled, monkeypatch):
    """(workdir, turns) -> what `run_ppo` leaves, with the seeker's model as it was fitted. Programs are compiled once
    for one turn and once for two, and `compiled["mode"]` says what happens in the second: "talk"; "leave", all seekers
    do; "repeat", the first turn's contexts and replies come again.
    """
    compiled["mode"] = "talk"
    find, draw = ppo_stage.find_seeker, ppo.sample

    def finding(*arguments):
        continuation, params = find(*arguments)
        made = continuation.episodes.contexts

        def switched(*given):
            answer = continuation.seeker(*given)
            modes = [jax.ShapeDtypeStruct((), bool)] * 2
            talk_on, leave = io_callback(lambda: [np.bool_(compiled["mode"] == m) for m in ("talk", "leave")], modes)
            return Answer(answer.tokens_BR, (answer.gone_B & talk_on) | leave)

        def contexts(where_C2, said_BUR):
            compiled["first"] = said_BUR[:, 0]
            if compiled["mode"] != "repeat":
                return made(where_C2, said_BUR)
            group = len(said_BUR) // len(where_C2)
            again = contexts_at(world.task, "train", [tuple(at) for at in where_C2])
            return jax.tree.map(lambda a: np.repeat(a, group, axis=0), again)

        continuation.episodes.contexts = contexts
        return Continuation(continuation.episodes, switched), params

    def sampled(policy, prompt_CP, mask_CP, key, *, group, **more):
        drawn = draw(policy, prompt_CP, mask_CP, key, group=group, **more)
        if group > 1:
            return drawn

        def host(prompt_CP, tokens_BR, mask_BR):
            if compiled["mode"] != "repeat":
                return np.asarray(tokens_BR), np.asarray(mask_BR)
            return compiled["first"], compiled["first"] != world.task.tokenizer.pad

        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in drawn[:2]]
        return Replies(*io_callback(host, shapes, prompt_CP, *drawn[:2]), drawn.logp_BR)

    def once(name):
        def make(*arguments):
            key = name, len(arguments)
            compiled[key] = compiled.get(key) or quick(compiled[name](*arguments))
            return compiled[key]

        return make

    monkeypatch.setattr(ppo_stage, "find_seeker", finding)
    monkeypatch.setattr(ppo, "sample", sampled)
    monkeypatch.setattr(rollout, "sample", sampled)
    for name in ("make_iteration", "make_reference_signals"):
        monkeypatch.setattr(ppo_stage, name, once(name))

    def align(workdir, turns=2):
        task = world.at(workdir, **{**TURNS, "ppo__turns": turns, "ppo__checks": compiled["mode"] != "repeat"})
        if not (workdir / "checkpoints").exists():
            shutil.copytree(fitted[0].workdir / "checkpoints" / "seeker", workdir / "checkpoints" / "seeker")
        with MetricsWriter(workdir, tensorboard=False) as writer:
            return run_ppo(task, writer, world.sft, world.reward)

    return align


def lines(workdir) -> list[dict]:
    return [line for line in read_log(workdir / "metrics.jsonl") if line["stage"] == "ppo"]


@pytest.mark.slow
def test_a_second_turn_that_is_the_first_once_more_is_worth_no_more_than_none(world, run, compiled, tmp_path):
    """Where all seekers leave at once what nobody says adds nothing anywhere. Where the second turn is the first once
    more, and no turn looks ahead to the next, all means are the same: though its rows have a context each, and no
    group.
    """
    found = {}
    for mode in ("leave", "repeat"):
        compiled["mode"] = mode
        found[mode] = run(tmp_path / mode).policy[1]
    moved = []
    for start, a, b in zip(*map(jax.tree.leaves, (world.sft[1], found["leave"], found["repeat"])), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
        moved.append(float(np.abs(a - start).max()))
    assert max(moved) > 1e-4
    for alone, line in zip(lines(tmp_path / "leave"), lines(tmp_path / "repeat"), strict=True):
        assert (alone["turn/2/share"], alone["seeker/ended"], alone["turn/2/reward"]) == (0.0, 1.0, 0.0)
        assert (line["turn/2/share"], line["seeker/ended"]) == (1.0, 0.0)
        assert line["turn/2/reward"] == pytest.approx(line["turn/1/reward"], abs=1e-5)
        for name in alone.keys() - {"stage", "seconds", "sampler_gap", "health/distinct"}:
            if not name.startswith(("turn/2", "seeker")):
                assert line[name] == pytest.approx(alone[name], rel=1e-3, abs=2e-5), name


@pytest.mark.slow
def test_two_turns_train_and_a_killed_stage_ends_with_the_same_bits(run, compiled, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    first, *_, last = lines(tmp_path / "whole")
    # The ratio is 1 at the first update, and the sampler's log-probabilities are the scorer's in both turns.
    assert first["turn/2/share"] > 0.5
    assert 0 <= first["ratio_error"] < 1e-4
    assert 0 < first["sampler_gap"] < 1e-4
    assert 0 <= first["kl/max"] < 1e-4
    assert 1e-4 < abs(last["kl"]) < 1
    share, rewards = first["turn/2/share"], [first[f"turn/{u}/reward"] for u in (1, 2)]
    assert first["reward"] == pytest.approx((rewards[0] + share * rewards[1]) / (1 + share), rel=1e-4)
    lengths = [first[f"turn/{u}/length"] for u in (1, 2)]
    assert first["reply_length"] == pytest.approx((lengths[0] + share * lengths[1]) / (1 + share), rel=1e-4)
    assert first["seeker/ended"] == pytest.approx(1 - share, abs=1e-6)
    assert first["seeker/length"] > 1

    take, met = ppo_stage.take, []

    def killing(*arguments):
        met.append(1)
        if len(met) == ppo_stage.REFERENCE_BATCHES + 3:
            raise KeyboardInterrupt
        return take(*arguments)

    monkeypatch.setattr(ppo_stage, "take", killing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.setattr(ppo_stage, "take", take)
    resumed = run(tmp_path / "killed")
    for a, b in zip(jax.tree.leaves(resumed.policy[1]), jax.tree.leaves(whole.policy[1]), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    found, wanted = ([{**line, "seconds": 0} for line in lines(tmp_path / name)] for name in ("killed", "whole"))
    assert found == wanted
    for turns in (1, 3):
        with pytest.raises(InputError, match=rf"checkpoints/ppo: made with config.ppo.turns=2, now {turns}"):
            run(tmp_path / "killed", turns)


def test_rows_of_later_turns_stand_turn_by_turn_and_advantages_follow_episodes():
    """By hand: 2 contexts of 2 episodes, 3 turns, replies of one or two tokens; episode 2 is left after its first."""
    C, G, R, pad = 2, 2, 2, 9
    B, turns = C * G, 3

    class Now:
        tokenizer = types.SimpleNamespace(pad=pad)

    def answering(params, frozen, where_C2, said_BUR, number, key):
        return Answer(jnp.full((B, R), 7, jnp.int32), jnp.arange(B) == 2)

    class Said(Continuation):
        def grown(self, like, where_C2, said_BUR):  # tokens so far and whose they are, to look at afterwards
            return Contexts(said_BUR.reshape(B, -1), jnp.arange(B)[:, None], like.features)

    lengths = jnp.array([2, 1, 2, 1])

    def reply(contexts, key, alive_B=None):
        alive_B = jnp.ones(B, bool) if alive_B is None else alive_B
        mask = (jnp.arange(R) < lengths[:, None]) & alive_B[:, None]
        tokens = jnp.where(mask, jnp.arange(B)[:, None], pad).astype(jnp.int32)
        reward, blank = 10.0 ** jnp.arange(B)[:, None] * mask, jnp.zeros((B, R))
        likelihood, split = TokenLikelihood(blank, blank, blank), TokenMasks(mask, mask, blank, mask, mask, alive_B)
        scores = Scores(reward[:, 0], reward.sum(1), jnp.ones((B, 3)), jnp.zeros(B))
        replies = Replies(tokens, mask, blank)
        return RolloutBatch(
            contexts, replies, alive_B, likelihood, likelihood, FirstToken(blank, blank), blank, split, scores, blank,
            blank, jnp.ones(B, bool), reward,
        )  # fmt: skip

    like = Contexts(*(jnp.zeros((C, 1)) for _ in Contexts._fields[:2]), ContextFeatures(*[jnp.zeros((C, 1))] * 9))
    continuation = Said(Now(), answering)
    first = reply(like, None)
    later, answers = jax.jit(lambda: go_on(continuation, reply, ({}, None), first, turns, jax.random.key(0), None))()
    later = as_rows(later)
    said = np.asarray(later.contexts.prompt_CP).reshape(turns - 1, B, 2 * turns - 1, R)
    for b in range(B):
        own = [b] * int(lengths[b]) + [pad] * (R - int(lengths[b]))
        gone, nothing = [own, [7, 7], [pad, pad], [pad, pad], [pad, pad]], [pad, pad]
        assert said[0, b].tolist() == [own, [7, 7], nothing, nothing, nothing]
        assert said[1, b].tolist() == (gone if b == 2 else [own, [7, 7], own, [7, 7], nothing])
    assert np.asarray(answers.tokens_BR).reshape(2, B, R)[1, 2].tolist() == [pad, pad]
    played = joined([first, later])
    assert played.alive_B.reshape(turns, B).tolist() == [[True] * 4, *[[True, True, False, True]] * 2]
    c = ConfigDict({"turns": turns, "discount": 1.0, "gae_lambda": 1.0, "turn_discount": 1.0})
    found = np.asarray(advantages(played, c)[0]).reshape(turns, B, R)
    for b, length in enumerate(lengths.tolist()):  # what is still to come, in tokens, each worth 10 ** b
        total = length * (1 if b == 2 else turns)
        expected = np.zeros((turns, R))
        for n in range(total):
            expected[n // length, n % length] = (total - n) * 10.0**b
        np.testing.assert_allclose(found[:, b], expected)
    rows = by_episode({"b": later.contexts.mask_CP[:, 0]}, turns, C)["b"]
    assert rows.tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]
    metrics = by_turn(played, turns, answers, pad)
    assert metrics["seeker/ended"] == 0.25
    assert [float(metrics[f"turn/{u}/share"]) for u in (1, 2, 3)] == [1.0, 0.75, 0.75]
    assert [float(metrics[f"turn/{u}/length"]) for u in (1, 2)] == pytest.approx([6 / 4, 4 / 3])
    assert float(metrics["turn/2/reward"]) == pytest.approx((2 + 10 + 1000) / 3)
    assert float(metrics["seeker/length"]) == 2


def test_simulated_seekers_answer_inside_the_program(world, episodes):
    task, t, catalogue = world.task, world.task.tokenizer, world.task.corpus.catalogue
    where, R = logged(task, 2)[:8], task.config.data.reply_tokens
    said = said_of(task, where, 1)[..., :R]
    said[1] = t.pad  # nothing was said: whose turn it was is over
    answer = jax.jit(lambda key: simulated_seeker(task, episodes)(None, None, jnp.array(where), said, 1, key))
    found, again, other = (answer(jax.random.key(n)) for n in (0, 0, 1))
    np.testing.assert_array_equal(found.tokens_BR, again.tokens_BR)
    assert (np.asarray(found.tokens_BR) != np.asarray(other.tokens_BR)).any()
    assert found.gone_B[1]
    known = {word for forms in words.REACTIONS for form in forms for word in form.split() if "{" not in word}
    for b in (0, 2, 3, 4, 5, 6, 7):
        row = [int(x) for x in found.tokens_BR[b] if x != t.pad]
        assert row[-1] == t.end
        spoken = t.decode_turn([t.seeker, *row], catalogue)
        told = any(form.split("{")[0] in spoken.text for forms in words.NEEDS.values() for form in forms)
        assert known & set(spoken.text.split()) or told or found.gone_B[b]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "rloo"}, r"--config\.ppo\.turns=2: must be 1 for --config\.algorithm=rloo"),
        (
            {"ppo__seeker": "simulator", "data__dataset": "redial"},
            r"--config\.ppo\.seeker='simulator': there are no simulated seekers in --config\.data\.dataset=redial",
        ),
        ({"ppo__seeker": "nobody"}, r"--config\.ppo\.seeker='nobody': must be one of model, simulator"),
        ({"ppo__turn_discount": 1.5}, r"--config\.ppo\.turn_discount=1\.5: must lie between 0 and 1"),
        ({"ppo__turns": 0}, r"--config\.ppo\.turns=0: must be at least 1"),
        ({"seeker__epochs": 0.0}, r"--config\.seeker\.epochs=0\.0: must be at least 0\.001"),
    ],
)
def test_what_cannot_be_is_one_line(world, tmp_path, changes, message):
    config = change(world.task.config, **{"ppo__turns": 2, "data__dir": str(tmp_path), **changes})
    with pytest.raises(InputError, match=message) as caught:
        validate(config)
    assert "\n" not in str(caught.value)
    if changes.get("algorithm") or changes.get("data__dataset"):
        validate(change(config, ppo__turns=1))
