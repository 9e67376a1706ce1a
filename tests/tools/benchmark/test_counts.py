"""The counts of operations and bytes, against the compiler's own, torch's counter and published sizes."""

import jax
import jax.numpy as jnp
import pytest

from configs.benchmark import SIZES, get_config
from crs_jax.models.gpt2 import GPT2Config, Trunk
from crs_jax.tools.benchmark import counts
from crs_jax.tools.benchmark.counts import Batch, Model

SMALL = Model(layers=1, width=64, words=506, items=120, content=30, act_slots=5, bytes_each=4)


def compiled_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def plain_layers(layers: int, width: int, heads: int, backward: bool):
    """An unrolled transformer of matrix products alone: what the compiler counts has no scan in it."""

    def forward(weights, x_BTD):
        B, T, D = x_BTD.shape
        for qkv, out, up, down in weights:
            q, k, v = jnp.moveaxis((x_BTD @ qkv).reshape(B, T, 3, heads, D // heads), 2, 0)
            scores = jnp.einsum("BTHK,BSHK->BHTS", q, k)
            x_BTD = jnp.einsum("BHTS,BSHK->BTHK", scores, v).reshape(B, T, D) @ out
            x_BTD = (x_BTD @ up) @ down
        return (x_BTD**2).sum()

    shapes = (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)
    weights = [[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes] for _ in range(layers)]
    return (jax.grad(forward, argnums=(0, 1)) if backward else forward), weights


@pytest.mark.parametrize("backward", [False, True])
def test_trunk_agrees_with_the_compiler(backward):
    """Of unmasked rows, where every token attends to all T."""
    layers, width, B, T = 3, 64, 4, 48
    function, weights = plain_layers(layers, width, 4, backward)
    found = compiled_flops(function, weights, jax.ShapeDtypeStruct((B, T, width), jnp.float32))
    model = Model(layers, width, 1, 1, 1, 1, 4)
    assert found == pytest.approx((3 if backward else 1) * model.trunk(B * T, B * T * T), rel=0.03)


def test_trunk_agrees_with_torch():
    """`FlopCounterMode` on transformers' GPT-2: its layers' products and, in full, its attention's."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    shape = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=100, attn_implementation="eager")
    trunk = transformers.GPT2Model(shape).eval()
    B, T = 3, 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trunk(torch.zeros((B, T), dtype=torch.long), use_cache=False)
    assert counter.get_total_flops() == Model(2, 64, 1, 1, 1, 1, 4).trunk(B * T, B * T * T)


def test_heads_agree_with_the_compiler():
    """Words at 24 places, items at 10, and hidden states projected onto contents at both."""
    D, V, N, W = SMALL.width, SMALL.words, SMALL.items, SMALL.content

    def heads(hidden, words, slate, items, projection):
        own = (hidden @ projection).sum()
        match = jnp.concatenate([slate, slate @ projection], -1)
        return (hidden @ words.T).sum() + (match @ items.T).sum() + own

    shapes = (24, D), (V, D), (10, D), (N, D + W), (D, W)
    found = compiled_flops(heads, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert found == pytest.approx(SMALL.heads(24, 10), rel=0.03)


def test_pairs_are_those_of_the_masks():
    """Contexts are causal; a reply sees its context and itself, not the group's other replies."""
    batch = Batch(contexts=2, group=3, context_tokens=5, reply_tokens=4)
    seen = 0
    for _ in range(batch.contexts):
        seen += sum(t + 1 for t in range(5))
        seen += sum(5 + r + 1 for _ in range(batch.group) for r in range(4))
    assert batch.pairs == seen
    assert batch.tokens == 2 * (5 + 3 * 4)


def test_work_adds_up():
    batch = Batch(4, 2, 16, 8)
    one = counts.likelihood_pass(SMALL, batch)
    assert counts.update(SMALL, batch) == 3 * one
    assert counts.iteration(SMALL, batch, 2) == one + counts.scoring(SMALL, batch) + 6 * one
    assert counts.scoring(SMALL, batch) == 2 * one + SMALL.trunk(batch.tokens, batch.pairs)


@pytest.mark.parametrize(("size", "published"), [("124m", 124_439_808), ("345m", 354_823_168), ("774m", 774_030_080)])
def test_sizes_are_those_of_gpt2(size, published):
    """Parameters with GPT-2's vocabulary of 50,257 and 1,024 positions (transformers' checkpoints)."""
    layers, width, heads = SIZES[size]
    assert get_config(size).model.positions == 1024
    model = Model(layers, width, 50_257, 1, 1, 1, 4)
    outside = 50_257 * width + 1024 * width + 2 * width
    assert model.trunk_numbers + outside == published
    assert width % heads == 0


def test_trunk_numbers_are_the_trunks():
    from flax import nnx

    trunk = nnx.eval_shape(lambda: Trunk(GPT2Config(3, 64, 4, 32), rngs=nnx.Rngs(0)))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(trunk.blocks)))
    assert numbers == Model(3, 64, 1, 1, 1, 1, 4).trunk_numbers


def test_decode_bytes():
    """By hand: 1 layer of 64, 506 words, 2 contexts of 5 tokens with 3 replies of 4 each, float32."""
    parameters = 12 * 64**2 + 13 * 64 + 506 * 64
    keys_and_values = 2 * 64 * (2 * 5 + 6 * (1 + 2 + 3 + 4) / 4)
    assert counts.decode_bytes(SMALL, Batch(2, 3, 5, 4)) == 4 * (parameters + keys_and_values)
