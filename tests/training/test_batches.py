"""Batches of prompts of about one length: every context once a pass, each prompt whole, and the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import quickstart
from crs_jax.config import validate
from crs_jax.inputs.contexts import contexts_at
from crs_jax.rl.contexts import take
from crs_jax.rl.forward import policy_pass
from crs_jax.rl.reward import Normaliser
from crs_jax.rl.sampling import sample
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.identity import identity
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.training import ppo_stage
from crs_jax.training.batches import Batches, chosen, widths_of
from crs_jax.training.ppo_stage import contexts_of, run_ppo

SHORT = {"data__window": 1, "ppo__unseen": False}  # contexts of one utterance, so that lengths differ
LENGTHS = np.random.default_rng(0).integers(3, 97, 103)


def test_widths_are_even_and_end_with_the_longest():
    assert widths_of(96, 1) == (96,)
    assert widths_of(96, 4) == (24, 48, 72, 96)
    assert widths_of(10, 3) == (4, 7, 10)
    assert widths_of(3, 8) == (1, 2, 3)


def test_without_buckets_batches_are_full_passes_at_full_width():
    batches = Batches(LENGTHS, 8, 96, 1, seed=3)
    for iteration in (0, 1, 12, 13, 40):
        index, width = batches(iteration)
        np.testing.assert_array_equal(index, chosen(3, iteration, 103, 8))
        assert width == 96
    seen = np.concatenate([batches(i)[0] for i in range(103)])  # eight passes
    assert (np.bincount(seen) == 8).all()


def test_a_batch_is_as_wide_as_its_longest_prompt_needs():
    batches = Batches(LENGTHS, 8, 96, 4, seed=3)
    widths = []
    for iteration in range(24):
        index, width = batches(iteration)
        assert len(set(index.tolist())) == 8
        longest = LENGTHS[index].max()
        assert longest <= width
        assert width - longest < 24
        widths.append(width)
    assert set(widths) == {24, 48, 72, 96}
    assert widths != sorted(widths)  # short and long take turns
    # A batch that spans two buckets is as wide as the wider: at most three of a pass.
    assert np.mean(widths) < LENGTHS.mean() + 12 + 3 * 24 / 12


def test_a_pass_takes_no_context_twice_and_leaves_out_others_each_time():
    batches = Batches(LENGTHS, 8, 96, 4, seed=3)
    passes = [set(np.concatenate([batches(12 * p + i)[0] for i in range(12)]).tolist()) for p in range(3)]
    assert all(len(p) == 96 for p in passes)
    assert passes[0] != passes[1] != passes[2]
    assert set.union(*passes) == set(range(103))
    again = Batches(LENGTHS, 8, 96, 4, seed=3)(17)
    np.testing.assert_array_equal(again[0], batches(17)[0])  # by its number alone, so that a resumed run goes on


def test_fewer_contexts_than_a_batch_are_taken_again():
    index, width = Batches(LENGTHS[:5], 8, 96, 4, seed=0)(2)
    assert len(index) == 8
    assert set(index.tolist()) <= set(range(5))
    assert width >= LENGTHS[:5][index].max()


def test_take_cuts_padding_alone(world, tmp_path):
    task = world.at(tmp_path, **SHORT)
    contexts = contexts_at(task, "train", contexts_of(task))
    index, width = Batches(contexts.mask_CP.sum(1), 4, contexts.mask_CP.shape[1], 2, 0)(1)
    whole, cut = take(contexts, index), take(contexts, index, width)
    assert width < whole.mask_CP.shape[1]
    assert cut.prompt_CP.shape == cut.mask_CP.shape == (4, width)
    assert cut.mask_CP.sum() == whole.mask_CP.sum()
    np.testing.assert_array_equal(cut.prompt_CP[cut.mask_CP], whole.prompt_CP[whole.mask_CP])
    np.testing.assert_array_equal(cut.features.text, whole.features.text)


def test_narrow_prompts_give_the_same_draws_and_likelihoods(world, tmp_path):
    task = world.at(tmp_path, **SHORT)
    contexts = contexts_at(task, "train", contexts_of(task))
    index, width = Batches(contexts.mask_CP.sum(1), 4, contexts.mask_CP.shape[1], 2, 0)(1)
    graph, params, frozen = world.sft

    @jax.jit
    def drawn(contexts):
        policy = nnx.merge(graph, params, frozen)
        given = contexts.prompt_CP, contexts.mask_CP, jax.random.key(1)
        replies = sample(policy, *given, group=3, reply_tokens=12, features=contexts.features)
        return replies, policy_pass(graph, params, frozen, contexts, replies, 1.0)

    found, wanted = (drawn(take(contexts, index, w)) for w in (width, None))
    np.testing.assert_array_equal(found[0].tokens_BR, wanted[0].tokens_BR)
    assert len(np.unique(np.asarray(found[0].tokens_BR), axis=0)) > 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


@pytest.fixture
def first_batch(world, monkeypatch):
    """(workdir, changes) -> contexts and key of the first iteration, which is not run."""

    class Seen(BaseException):
        pass

    def make_iteration(*arguments):
        def iteration(state, frozen_models, normaliser, contexts, key):
            raise Seen(contexts, key)

        return iteration

    monkeypatch.setattr(ppo_stage, "make_iteration", make_iteration)
    blank = Normaliser(jnp.zeros(3), jnp.ones(3), jnp.float32(1))
    monkeypatch.setattr(ppo_stage, "reference_normaliser", lambda *arguments: blank)

    def see(workdir, **changes):
        task = world.at(workdir, ppo__validation_contexts=0, **changes)
        with MetricsWriter(task.workdir, tensorboard=False) as writer, pytest.raises(Seen) as met:
            run_ppo(task, writer, world.sft, world.reward)
        return met.value.args

    return see


def test_the_stage_cuts_prompts_to_the_width_of_their_batch(first_batch, tmp_path):
    seen = {}
    for seed in range(6):
        changes = {**SHORT, "seed": seed, "ppo__buckets": 2, "ppo__contexts": 1, "ppo__slate_batches": 1}
        contexts, _ = first_batch(tmp_path / str(seed), **changes)
        width, longest = contexts.prompt_CP.shape[1], np.asarray(contexts.mask_CP).sum(1).max()
        assert width == (24 if longest <= 24 else 48)
        seen[width] = longest
    assert seen.keys() == {24, 48}


def test_each_seed_of_ppo_draws_anew_for_the_same_models(first_batch, world, tmp_path):
    drawn = [first_batch(tmp_path / str(seed), ppo__seed=seed) for seed in (0, 1)]
    (contexts, key), (others, other_key) = drawn
    assert not np.array_equal(contexts.prompt_CP, others.prompt_CP)
    assert not np.array_equal(*map(jax.random.key_data, (key, other_key)))
    again, same_key = first_batch(tmp_path / "again", ppo__seed=1)
    assert np.array_equal(again.prompt_CP, others.prompt_CP)
    assert np.array_equal(*map(jax.random.key_data, (same_key, other_key)))
    for stage in ("sft", "reward"):
        a, b = (identity(world.at(tmp_path, ppo__seed=seed).config, stage) for seed in (0, 1))
        assert a == b


def test_growing_contexts_have_one_width():
    config = quickstart.get_config()
    config.ppo.turns, config.ppo.buckets, config.ppo.group_baseline = 2, 2, False
    with pytest.raises(InputError, match=r"ppo\.buckets=2: must be 1 where episodes have several turns"):
        validate(config)
