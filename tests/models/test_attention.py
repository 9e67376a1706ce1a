"""Attention by XLA against jax.nn's, and cuDNN's: its padding, its program, and, on a GPU, its numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from crs_jax.config import validate
from crs_jax.models.attention import TILE, attend, attend_one, attention_weights, refuse_where_missing
from crs_jax.models.gpt2 import GPT2Config, Trunk
from crs_jax.rl.sampling import causal
from crs_jax.runtime.errors import InputError

ON_GPU = jax.default_backend() == "gpu"


def test_weights_are_a_masked_softmax():
    rng = np.random.default_rng(7)
    scores, mask = rng.normal(0, 30, (3, 4, 6)), rng.random((3, 4, 6)) < 0.6
    mask[0, 0] = False
    got = attention_weights(jnp.asarray(scores, jnp.float32), mask)
    expected = np.zeros_like(scores)
    for at in np.ndindex(3, 4):
        if mask[at].any():
            e = np.exp(scores[at] - scores[at][mask[at]].max()) * mask[at]
            expected[at] = e / e.sum()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
    gradient = jax.grad(lambda s: (attention_weights(s, mask) ** 2).sum())(jnp.asarray(scores, jnp.float32))
    assert np.isfinite(gradient).all()


def inputs(T: int, dtype: str, seed: int = 0):
    """Queries, keys, values `[2, T, 3, 16]` and a mask under which every row sees at least itself."""
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(2, T, 3, 16)), dtype) for _ in range(3))
    mask = (rng.random((2, T, T)) < 0.4) & np.tril(np.ones((T, T), bool)) | np.eye(T, dtype=bool)
    return q, k, v, jnp.asarray(mask)


def value_and_gradients(function, q, k, v, mask):
    def loss(q, k, v):
        out = function(q, k, v, mask).astype(jnp.float32)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(a, np.float32) for a in (out, *grads)]


def test_xla_equals_jax_nn():
    given = inputs(37, "float32")
    expected = value_and_gradients(
        lambda q, k, v, m: jax.nn.dot_product_attention(q, k, v, mask=m[:, None], implementation="xla"), *given
    )
    for got, wanted in zip(value_and_gradients(attend, *given), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_fewer_heads_of_keys_are_read_as_if_repeated(heads):
    """In order, as transformers repeats them: over whole sequences, and of one token against caches."""
    rng = np.random.default_rng(heads)
    C, G, P, R, H, K = 2, 3, 5, 4, 4, 8
    q, k, v = (rng.normal(size=(C, P, n, K)).astype(np.float32) for n in (H, heads, heads))
    mask = np.tril(np.ones((C, P, P), bool))
    repeated = value_and_gradients(
        lambda q, k, v, m: attend(q, jnp.repeat(k, H // heads, 2), jnp.repeat(v, H // heads, 2), m), q, k, v, mask
    )
    for got, wanted in zip(value_and_gradients(attend, q, k, v, mask), repeated, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)

    q_BHK = rng.normal(size=(C * G, H, K)).astype(np.float32)
    k_CJPK, v_CJPK = (rng.normal(size=(C, heads, P, K)).astype(np.float32) for _ in range(2))
    k_BJRK, v_BJRK = (rng.normal(size=(C * G, heads, R, K)).astype(np.float32) for _ in range(2))
    mask_BHS = rng.random((C * G, 1, P + R)) < 0.7
    mask_BHS[..., 0] = True
    pairs = (k_CJPK, k_BJRK), (v_CJPK, v_BJRK)
    keys, values = (np.repeat(np.concatenate([np.repeat(old, G, 0), new], 2), H // heads, 1) for old, new in pairs)
    scores = np.where(mask_BHS, np.einsum("BHK,BHSK->BHS", q_BHK, keys) / K**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("BHS,BHSK->BHK", weights / weights.sum(-1, keepdims=True), values)
    got = attend_one(q_BHK, k_CJPK, v_CJPK, k_BJRK, v_BJRK, mask_BHS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def trunks():
    """The same trunk with either implementation."""
    made = Trunk(GPT2Config(2, 32, 2, 64, remat=True), rngs=nnx.Rngs(params=jax.random.key(0)))
    state = nnx.state(made)
    other = Trunk(GPT2Config(2, 32, 2, 64, remat=True, attention="cudnn"), rngs=nnx.Rngs(params=jax.random.key(0)))
    return nnx.graphdef(made), nnx.graphdef(other), state


def test_padding_for_cudnn_is_seen_by_nobody(monkeypatch):
    """The padded trunk with jax.nn's attention in cuDNN's place: the plain one's states, cache and gradients."""
    lengths = []
    by_xla = jax.nn.dot_product_attention

    def other(q, k, v, *, mask, implementation):
        assert implementation == "cudnn"
        lengths.append((q.shape[1], k.shape[1], mask.shape[-2:]))
        return by_xla(q, k, v, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", other)
    plain, padded, state = trunks()
    rng = np.random.default_rng(1)
    x_BTD, mask_BT = rng.normal(size=(3, 11, 32)).astype(np.float32), np.ones((3, 11), bool)
    mask_BT[1, :4] = False  # left padding
    position_BT, mask_BTS = np.maximum(np.cumsum(mask_BT, 1) - 1, 0), causal(jnp.asarray(mask_BT))

    def of(graphdef):
        def loss(state, x):
            hidden, cache = nnx.merge(graphdef, state).prefill(x, position_BT, mask_BTS)
            whole = nnx.merge(graphdef, state)(x, position_BT, mask_BTS)
            return (jnp.sin(whole) * mask_BT[..., None]).sum(), (hidden, cache, whole)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, x_BTD)

    ((_, (hidden, cache, whole)), grads), ((_, found), found_grads) = of(plain), of(padded)
    assert lengths
    assert set(lengths) == {(TILE, TILE, (TILE, TILE))}
    real = mask_BT[..., None]
    np.testing.assert_allclose(found[0] * real, hidden * real, atol=2e-5)
    np.testing.assert_allclose(found[2] * real, whole * real, atol=2e-5)
    for got, wanted in zip(found[1], cache, strict=True):
        assert got.shape == (2, 3, 2, 11, 16)
        real = mask_BT[None, :, None, :, None]
        np.testing.assert_allclose(got * real, wanted * real, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found_grads, grads)


@pytest.mark.skipif(ON_GPU, reason="asks what a GPU is not asked")
def test_the_program_for_a_gpu_calls_the_fused_kernel_and_holds_no_scores(monkeypatch):
    """Lowered for CUDA without a GPU: its kind and cuDNN's version, which jax asks for, are made up."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    config = GPT2Config(2, 128, 2, 256, dtype="bfloat16", attention="cudnn")
    graphdef, state = nnx.split(Trunk(config, rngs=nnx.Rngs(params=jax.random.key(0))))
    x_BTD, mask_BTS = jnp.zeros((3, 200, 128), jnp.bfloat16), jnp.ones((3, 200, 200), bool)

    def loss(state, x):
        return nnx.merge(graphdef, state)(x, jnp.arange(200)[None], mask_BTS).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss)).trace(state, x_BTD).lower(lowering_platforms=("cuda",)).as_text()
    calls = set(re.findall(r"custom_call @(__cudnn\$\w+)", text))
    assert calls == {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
    assert "tensor<3x1x256x256xbf16>" in text  # the mask, one for all heads
    assert not re.search(r"tensor<3x2x256x256x", text)  # scores of each head


@pytest.mark.skipif(not ON_GPU, reason="no GPU here: cuDNN's numbers are compared where there is one")
def test_cudnn_equals_xla():
    given = inputs(2 * TILE, "bfloat16")
    expected = value_and_gradients(attend, *given)
    for got, wanted in zip(value_and_gradients(lambda *a: attend(*a, "cudnn"), *given), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0.03, atol=0.03 * np.abs(wanted).max())


def test_it_is_refused_where_it_cannot_be():
    if not ON_GPU:
        with pytest.raises(InputError, match=r"model\.attention=cudnn: needs an NVIDIA GPU"):
            refuse_where_missing("cudnn")
    config = common.get_config()
    config.model.attention = "cudnn"
    with pytest.raises(InputError, match=r"model\.attention=.*bfloat16.*here float32 and"):
        validate(config)
