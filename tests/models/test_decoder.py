"""A second decoder, of a file of its own, under the policy: the sampler's numbers, the optimizer's, and its files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from safetensors.numpy import load_file
from tiny_policy import (
    make_layout,
    make_policy,
    pad,
    plain_likelihood,
    plain_wishes,
    random_evidence,
    random_prompts,
    split,
    unpad,
)

from configs import common
from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.task import model_config
from crs_jax.models import hf
from crs_jax.models.decoder import DECODERS
from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.weights import SINGLE
from crs_jax.rl.sampling import sample
from crs_jax.rl.scoring import reply_likelihood, tree_hidden
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.sharding import AXES, path_name, spec_of
from crs_jax.training.optimizer import Rates

LAYOUT = make_layout(words=11, items=5, act_items=2, unused=(4,))
LENGTHS, P, R, G = [9, 2, 5], 9, 12, 3


@pytest.fixture(scope="module")
def policy(toy_module):
    return make_policy(0, LAYOUT, decoder=toy_module.ToyConfig, heads=4)


@functools.partial(jax.jit, static_argnums=0)
def drawn_and_scored(graph, params, frozen, contexts, key):
    policy = nnx.merge(graph, params, frozen)
    prompts, mask, *evidence = contexts
    features = ContextFeatures(*evidence)
    replies = sample(policy, prompts, mask, key, group=G, reply_tokens=R, features=features, temperature=0.8, block=5)
    tables, rows = policy.tables(), (replies.tokens_BR, replies.mask_BR)
    hidden = tree_hidden(policy, tables, prompts, mask, *(a.reshape(len(LENGTHS), G, R) for a in rows)).before
    asked = jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), policy.item_query(features))
    flat = hidden.reshape(len(LENGTHS) * G, R, -1)
    return replies, reply_likelihood(policy, tables, flat, *rows, temperature=0.8, item_query=asked).logp_BR


def test_the_sampler_the_scorer_and_plain_rows_say_the_same(policy):
    """From left-padded prompts with one cache a group, from one pass over a tree, and from a row a reply."""
    rng = np.random.default_rng(3)
    contexts = *random_prompts(rng, LAYOUT, LENGTHS, P), *random_evidence(rng, LAYOUT, len(LENGTHS))[:8]
    own = [row for row in unpad(*contexts[:2]) for _ in range(G)]
    split_features = [item_query for item_query in plain_wishes(policy, contexts[2:]) for _ in range(G)]
    for seed in range(4):
        replies, logp_BR = drawn_and_scored(*split(policy), contexts, jax.random.key(seed))
        rows = unpad(replies.tokens_BR, replies.mask_BR)
        expected = pad(plain_likelihood(policy, own, rows, 0.8, split_features)[0], R)
        np.testing.assert_allclose(replies.logp_BR, expected, atol=2e-5)
        np.testing.assert_allclose(np.where(replies.mask_BR, logp_BR, 0.0), expected, atol=2e-5)


def test_its_parameters_have_rates_and_places(policy):
    rates, mesh = Rates(0.1, weight_decay=0.5, new=9.0), AbstractMesh((1, 2, 2), AXES)
    params, decay, whole = split(policy)[1], {}, set()
    for path, leaf in jax.tree_util.tree_leaves_with_path({name: params[name] for name in ("output", "trunk")}):
        name = path_name(path)
        multiple, decay[name.rpartition("/")[2]] = rates.of(f"policy/{name}")
        assert multiple == 1.0
        if not any(spec_of(name, leaf.shape, mesh)):
            whole.add(name)
    plain = {"norm_scale": 0.0, "final_scale": 0.0}
    matrices = ("output", *(f"{name}_kernel" for name in ("q", "k", "v", "out", "gate", "up", "down")))
    assert decay == plain | dict.fromkeys(matrices, 0.5)
    assert whole == {"trunk/blocks/norm_scale", "trunk/final_scale"}


def blank(toy):
    return make_policy(1, LAYOUT, decoder=toy.ToyConfig, heads=4)


def test_its_files_give_it_back_bit_for_bit(policy, toy, tmp_path):
    ending = np.arange(16, dtype=np.float32)
    left_out = hf.export(policy, tmp_path, ending)
    assert left_out
    assert "# The Toy part" in (tmp_path / "README.md").read_text()
    tensors, V = load_file(tmp_path / SINGLE), LAYOUT.num_words
    assert {name: a.shape for name, a in tensors.items()} == hf.exported_shapes(policy.trunk.config, LAYOUT)
    block = policy.trunk.blocks
    np.testing.assert_array_equal(
        tensors["toy.layers.1.k.weight"], np.einsum("DJK->JKD", block.k_kernel[...][1]).reshape(-1, 16)
    )
    output = tensors["lm_head.weight"]
    np.testing.assert_array_equal(output[:V], policy.output[...][:V])
    np.testing.assert_array_equal(output[LAYOUT.end], ending)
    np.testing.assert_allclose(output[LAYOUT.pad], output[:V].mean(0), atol=1e-6)

    other = blank(toy)
    assert np.abs(other.output[...] - policy.output[...])[:V].max() > 0.1
    hf.fill(other, hf.load(tmp_path, "toy"))
    for name in ("words", "output"):
        np.testing.assert_array_equal(getattr(other, name)[...][:V], getattr(policy, name)[...][:V])
    jax.tree.map(np.testing.assert_array_equal, nnx.state(other.trunk), nnx.state(policy.trunk))


def test_a_tied_checkpoint_starts_both_tables_and_an_untied_one_no_tied_model(policy, toy, tmp_path):
    checkpoint, other = hf.load(hf.export(policy, tmp_path) and tmp_path), blank(toy)
    assert checkpoint.output is not None
    hf.fill(other, dataclasses.replace(checkpoint, output=None))
    np.testing.assert_array_equal(other.output[...][: LAYOUT.num_words], checkpoint.words)
    gpt2 = make_policy(0, LAYOUT)
    same = dataclasses.replace(checkpoint, config=gpt2.trunk.config)
    with pytest.raises(InputError, match=r"init=.*: tied is False, the model has True"):
        hf.fill(gpt2, same)


def test_what_only_this_kind_has_is_compared(policy, toy, tmp_path):
    hf.export(policy, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"base": 7.0}))
    with pytest.raises(InputError, match=r"base is 7\.0, the model has 100\.0"):
        hf.fill(blank(toy), hf.load(tmp_path))


@pytest.mark.parametrize(
    ("change", "decoder", "says"),
    [
        ({}, "gpt2", "model_type is 'toy'; give --config.model.decoder=toy, not gpt2 (the decoders are gpt2, toy)"),
        ({"model_type": "llama"}, "gpt2", "model_type is 'llama', which no decoder has; the decoders are gpt2, toy"),
        ({"model_type": None}, "", "model_type is 'None', which no decoder has"),
        ({"model_type": ["toy"]}, "", "which no decoder has"),
        ({"activation": "relu"}, "toy", "not a Toy that this program has: activation is 'relu'"),
        ({"layers": "2"}, "toy", "layers is '2', expected a whole number above 0"),
        ({"heads": 0}, "toy", "heads is 0, expected a whole number above 0"),
    ],
)
def test_another_kind_is_one_clear_line(policy, toy, tmp_path, change, decoder, says):
    hf.export(policy, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(InputError) as caught:
        hf.load(tmp_path, decoder)
    assert str(caught.value).startswith(str(tmp_path / "config.json"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_choose_it(toy):
    config = common.get_config()
    assert model_config(config) == GPT2Config(4, 192, 4, 512, 0.1)
    config.model.decoder, config.model.dtype = "toy", "bfloat16"
    assert model_config(config) == toy.ToyConfig(4, 192, 4, 512, 0.1, "bfloat16")
    assert DECODERS["toy"].config is toy.ToyConfig
