"""Policies on another catalogue: what comes along says the same, what was learnt of single items does not, by name."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_task import change, make_task

from crs_jax.evaluation.policies import ranking_scores, reference_nll
from crs_jax.features.attributes import ERAS, YEARS
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.replies import reply_arrays
from crs_jax.inputs.task import copy_tree
from crs_jax.runtime.checkpoint import Checkpoints, Saved, load_result
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_json
from crs_jax.training.transfer import carried, source_of, transferred

BINS = len(YEARS) + 1


def noisy(tree, seed):
    leaves, shape = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(shape, [a + 0.1 * jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in leaves])


@pytest.fixture(scope="module")
def source(world, tmp_path_factory):
    """The workdir of a run that has ended, and the parameters of its policies."""
    folder = tmp_path_factory.mktemp("source")
    task = world.at(folder)
    write_json(folder / "config.json", task.config.to_dict())
    shutil.copytree(world.task.workdir / "tokenizer", folder / "tokenizer")
    sft, ppo = noisy(copy_tree(world.sft[1]), 1), noisy(copy_tree(world.sft[1]), 2)
    for stage, result in (("sft", sft), ("ppo", {"policy": ppo, "normaliser": {"mean_S": jnp.zeros(3)}})):
        with Checkpoints(folder, stage, task.config) as checkpoints:
            checkpoints.save(Saved(step=3, done=True, state={"step": jnp.int32(3)}, result=result))
    return folder, {"sft": sft, "ppo": ppo}


def pointed_at(world, folder, workdir, **changes):
    return world.at(workdir, stages="evaluate", model__transfer=str(folder), **changes)


def test_on_the_same_corpus_it_is_the_policy_without_what_it_learnt_of_single_items(world, source, tmp_path):
    folder, policies = source
    found = transferred(pointed_at(world, folder, tmp_path))
    assert list(found) == ["sft", "ppo"]
    contexts = contexts_at(world.task, "test", world.task.replies("test")[:16])
    replies = tuple(a[:16] for a in reply_arrays(world.task, "test", world.task.replies("test")))
    for row, params in policies.items():
        bare = {**params, "items": {**params["items"]}}
        for name in ("residual", "bias"):
            bare["items"][name] = jnp.zeros_like(params["items"][name])
        expected = (world.sft[0], bare, world.sft[2])
        scores = ranking_scores(world.task, found[row], contexts, "x")
        np.testing.assert_allclose(scores, ranking_scores(world.task, expected, contexts, "x"), atol=1e-5)
        whole = ranking_scores(world.task, (world.sft[0], params, world.sft[2]), contexts, "x")
        assert np.abs(scores - whole).max() > 0.1
        nll = [reference_nll(world.task, model, contexts, replies, "x") for model in (found[row], expected)]
        assert nll[0] == pytest.approx(nll[1], rel=1e-5)


def test_on_another_catalogue_every_size_is_its_own(world, source, corpus_cache, tmp_path):
    """A bigger catalogue in another order of genres, by the source's words: items stand where its tables have them."""
    folder, policies = source
    config = change(
        world.task.config, stages="evaluate", model__transfer=str(folder), simulator__catalogue_size=150, seed=5,
        data__cache_dir=str(tmp_path), data__dir=str(tmp_path / "raw"),
    )  # fmt: skip
    task = make_task(tmp_path, config)
    assert task.tokenizer.num_items == 150
    assert task.tokenizer.num_words == world.task.tokenizer.num_words
    text = "something funny with robots, thanks"
    assert task.tokenizer.encode_text(text) == world.task.tokenizer.encode_text(text)
    model = transferred(task)["sft"]
    policy = nnx.merge(*model)
    assert policy.items.residual.shape[0] == 256
    contexts = contexts_at(task, "test", task.replies("test")[:8])
    scores_IN = ranking_scores(task, model, contexts, "x")
    assert scores_IN.shape == (8, 150)
    assert np.isfinite(scores_IN).all()
    # An item is read as its contents through the source's projection, row by row, genres found by their names.
    content = np.asarray(policy.items.content[...])[:150]
    projection = np.asarray(policies["sft"]["items"]["projection"])
    E, there, here = task.content_NE.shape[1], world.task.attributes.genres, task.attributes.genres
    for row in (0, 77, 149):
        vector = content[row, :E] @ projection[:E] + content[row, -1] * projection[-1]
        for n, genre in enumerate(here):
            if genre in there:
                vector = vector + content[row, E + n] * projection[E + there.index(genre)]
        for n in range(BINS):
            vector = vector + content[row, E + len(here) + n] * projection[E + len(there) + n]
        token = jnp.array([task.layout.item_offset + row])
        read = policy.embed(token, policy.tables())[0] - policy.tables().mean_D
        np.testing.assert_allclose(read, vector, atol=1e-5)


def test_what_is_asked_for_meets_items_by_name():
    """A plain sum over names, of a catalogue that lacks one genre of the source and has another besides."""
    known, genres, E, D = ("horror", "comedy", "war"), ("comedy", "cooking", "horror"), 2, 3
    rng = np.random.default_rng(0)
    Z, F = 2 * 3 + len(ERAS) + 3, 3 + BINS
    query = {
        "text_kernel": rng.normal(size=(E, D)), "asked_kernel": rng.normal(size=(Z, D)),
        "match_kernel": rng.normal(size=(D, E + F + 1)), "hidden_kernel": rng.normal(size=(D, E + F + 1)),
        "asked_match": rng.normal(size=(Z, F)),
        "named_match": rng.normal(size=(F, F)), "gain": np.arange(7.0),
    }  # fmt: skip
    items = {"projection": rng.normal(size=(E + F + 1, D)), "residual": np.ones((128, D)), "bias": np.ones(128)}
    blank = {"items": {"residual": np.ones((256, D)), "bias": np.ones(256)}}
    params = {"items": items, "query": query, "words": np.ones((256, D)), "trunk": {"x": 1}}
    found = carried(params, blank, known, genres)

    def asked_names(genres):
        late = [f"era {n}" for n in range(len(ERAS))] + ["turns", "named", "none named"]
        return [f"fading {g}" for g in genres] + [f"last {g}" for g in genres] + late

    def facet_names(genres):
        return [*genres, *(f"years {n}" for n in range(BINS))]

    there, here = (asked_names(known), facet_names(known)), (asked_names(genres), facet_names(genres))
    for i, asked in enumerate(here[0]):
        for j, attribute in enumerate(here[1]):
            missing = "cooking" in asked or attribute == "cooking"
            expected = 0.0 if missing else query["asked_match"][there[0].index(asked), there[1].index(attribute)]
            assert found["query"]["asked_match"][i, j] == expected
        expected = np.zeros(D) if "cooking" in asked else query["asked_kernel"][there[0].index(asked)]
        np.testing.assert_allclose(found["query"]["asked_kernel"][i], expected, rtol=1e-6)
    for i, one in enumerate(here[1]):
        for j, other in enumerate(here[1]):
            missing = "cooking" in (one, other)
            expected = 0.0 if missing else query["named_match"][there[1].index(one), there[1].index(other)]
            assert found["query"]["named_match"][i, j] == expected
    contents = [["text 0", "text 1", *facet_names(g), "popularity"] for g in (known, genres)]
    for i, name in enumerate(contents[1]):
        at = None if name == "cooking" else contents[0].index(name)
        for new, old in (
            (found["items"]["projection"][i], items["projection"]),
            (found["query"]["match_kernel"][:, i], query["match_kernel"].T),
            (found["query"]["hidden_kernel"][:, i], query["hidden_kernel"].T),
        ):
            np.testing.assert_allclose(new, np.zeros(D) if at is None else old[at], rtol=1e-6)
    assert found["items"]["residual"].shape == (256, D)
    assert not found["items"]["residual"].any()
    assert found["words"] is params["words"]
    assert found["query"]["gain"] is query["gain"]


def test_a_run_that_cannot_be_taken_over_is_named(world, source, tmp_path):
    folder, _ = source
    with pytest.raises(InputError, match=r"model\.width=32.*this one 64.*--config\.model\.width=32"):
        source_of(pointed_at(world, folder, tmp_path, model__width=64).config)
    with pytest.raises(InputError, match=r"there is no config\.json"):
        source_of(pointed_at(world, tmp_path / "none", tmp_path).config)
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match="holds no finished stage sft"):
        transferred(pointed_at(world, bare, tmp_path))
    assert load_result(bare, "sft") is None
    # Sizes that no setting of the model shows: another sentence encoder.
    task = pointed_at(world, folder, tmp_path)
    longer = np.concatenate([task.content_NE, task.content_NE], 1)
    with pytest.raises(InputError, match=r"that run's \S+ is of size \(.*this config's"):
        transferred(dataclasses.replace(task, content_NE=longer))
