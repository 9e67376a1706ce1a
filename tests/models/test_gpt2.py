"""GPT-2 against transformers' torch GPT-2: values, hidden states, gradients, optimizer steps."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_policy import empty_policy, make_layout, split

from crs_jax.models import hf
from crs_jax.training.optimizer import Rates, make_optimizer, schedule

SHAPES = {
    "narrow": {"vocab_size": 61, "n_positions": 40, "n_embd": 32, "n_layer": 3, "n_head": 2},
    "odd": {"vocab_size": 50, "n_positions": 24, "n_embd": 36, "n_layer": 1, "n_head": 3, "layer_norm_epsilon": 1e-3},
    "124M, two layers": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 2, "n_head": 12},
}
BOUND = 1e-4  # max|difference| / max|reference| of a tensor, float32
BF16_BOUND = 0.03  # of the logits: 8 bits of mantissa are 0.4 % a rounding, and a layer has some ten of them


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("float32"):
        yield


def distance(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return np.abs(got - expected).max() / np.abs(expected).max()


def causal_logits(policy, tokens):
    """Logits over GPT-2's words."""
    B, T = tokens.shape
    x = policy.embed(tokens, policy.tables())
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    hidden = policy.trunk(x, jnp.arange(T)[None], mask)
    words = policy.words[...][: policy.layout.num_words].astype(policy.dtype)
    return jnp.einsum("BTD,VD->BTV", hidden, words, preferred_element_type=jnp.float32)


def make_loss(graph, frozen):
    @jax.jit
    def loss(params, tokens):
        logits = causal_logits(nnx.merge(graph, params, frozen), tokens)
        logp = jax.nn.log_softmax(logits[:, :-1], -1)
        return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean(), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def torch_names(params, num_words):
    """Our parameters (or their gradients) under transformers' names and in its shapes."""
    trunk, D = params["trunk"], params["words"].shape[1]
    named = {
        "wte.weight": params["words"][:num_words],
        "wpe.weight": trunk["positions"],
        "ln_f.weight": trunk["final_scale"],
        "ln_f.bias": trunk["final_bias"],
    }
    blocks = {name: np.asarray(array) for name, array in trunk["blocks"].items()}
    for n in range(len(blocks["up_bias"])):
        b = {name: array[n] for name, array in blocks.items()}
        named |= {
            f"h.{n}.ln_1.weight": b["ln1_scale"],
            f"h.{n}.ln_1.bias": b["ln1_bias"],
            f"h.{n}.attn.c_attn.weight": b["qkv_kernel"].reshape(D, 3 * D),
            f"h.{n}.attn.c_attn.bias": b["qkv_bias"].reshape(3 * D),
            f"h.{n}.attn.c_proj.weight": b["out_kernel"].reshape(D, D),
            f"h.{n}.attn.c_proj.bias": b["out_bias"],
            f"h.{n}.ln_2.weight": b["ln2_scale"],
            f"h.{n}.ln_2.bias": b["ln2_bias"],
            f"h.{n}.mlp.c_fc.weight": b["up_kernel"],
            f"h.{n}.mlp.c_fc.bias": b["up_bias"],
            f"h.{n}.mlp.c_proj.weight": b["down_kernel"],
            f"h.{n}.mlp.c_proj.bias": b["down_bias"],
        }
    return {name: np.asarray(array) for name, array in named.items()}


def without_key_bias(name, array):
    """Softmax does not see a constant added to all keys' scores: that gradient is zero, its computed value noise."""
    D = array.shape[-1] // 3
    return np.concatenate([array[:D], array[2 * D :]]) if name.endswith("c_attn.bias") else array


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.split(",")[0])
def case(request, tmp_path_factory):
    """A random torch GPT-2, saved and loaded into Flax; both models' loss, logits, hidden states and gradients."""
    torch = pytest.importorskip("torch")
    import transformers

    shape = SHAPES[request.param]
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **shape, bos_token_id=None, eos_token_id=None, attn_implementation="eager",
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide a swap, and matrices very small
        for parameter in model.parameters():
            if parameter.ndim == 1 or shape["n_embd"] < 100:
                parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    checkpoint = hf.load(folder)
    layout = make_layout(shape["vocab_size"])
    content_NE = np.random.default_rng(0).normal(size=(layout.num_items, 4)).astype(np.float32)
    graph, shapes, frozen = empty_policy(checkpoint.config, layout, content_NE)
    policy = nnx.merge(graph, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes), frozen)
    hf.fill(policy, checkpoint)
    params = split(policy)[1]

    tokens = np.random.default_rng(1).integers(0, shape["vocab_size"], (2, 13))
    step = make_loss(graph, frozen)
    (loss, logits), grads = step(params, tokens)
    given = torch.tensor(tokens)
    out = model(given, labels=given, output_hidden_states=True)
    out.loss.backward()
    return types.SimpleNamespace(
        torch=torch, model=model, policy=policy, graph=graph, params=params, frozen=frozen, tokens=tokens, step=step,
        num_words=shape["vocab_size"],
        ours={"loss": loss, "logits": logits, "grads": torch_names(grads, shape["vocab_size"]), "raw": grads},
        theirs={
            "loss": out.loss.item(), "logits": out.logits.detach().numpy(),
            "hidden": [h.detach().numpy() for h in out.hidden_states],
            "grads": {name: p.grad.numpy().copy() for name, p in model.transformer.named_parameters()},
        },
    )  # fmt: skip


def test_logits_and_loss(case):
    assert distance(case.ours["logits"], case.theirs["logits"]) < BOUND
    assert abs(float(case.ours["loss"]) / case.theirs["loss"] - 1) < 1e-5


def test_every_hidden_state(case):
    B, T = case.tokens.shape
    mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    x_BTD = case.policy.words[...][case.tokens]
    hidden = jax.jit(lambda trunk, x: trunk.hidden_states(x, jnp.arange(T)[None], mask))(case.policy.trunk, x_BTD)
    assert len(hidden) == len(case.theirs["hidden"]) == case.policy.trunk.config.layers + 1
    for got, expected in zip(hidden, case.theirs["hidden"], strict=True):
        assert distance(got, expected) < BOUND


def test_gradient_of_every_parameter(case):
    ours, theirs = case.ours["grads"], case.theirs["grads"]
    assert set(ours) == set(theirs)
    far = {n: distance(without_key_bias(n, ours[n]), without_key_bias(n, theirs[n])) for n in ours}
    assert max(far.values()) < BOUND, far
    D = case.policy.trunk.config.width
    for n in (n for n in ours if n.endswith("c_attn.bias")):
        for grads in (ours[n], theirs[n]):
            assert np.abs(grads[D : 2 * D]).max() < 1e-4 * np.abs(grads).max()
    assert not np.any(np.asarray(case.ours["raw"]["words"])[case.num_words :])


@pytest.mark.parametrize("case", ["narrow", "124M, two layers"], indirect=True, ids=["narrow", "124M"])
def test_adamw_steps(case):
    """With the stages' optimizer: its decay mask, clipping, schedule and (second and third step) moments all count.

    A weight whose gradient is all but zero may go the rate's length either way, so the rate is a usual one.
    """
    torch, rate, steps, clip, decay = case.torch, 1e-4, 8, 0.7, 0.1
    optimizer = make_optimizer(Rates(rate, decay), 0.25, steps, clip)
    named = dict(case.model.transformer.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    matrices = [p for name, p in named.items() if p.ndim == 2 and name != "wpe.weight"]
    others = [p for name, p in named.items() if p.ndim == 1 or name == "wpe.weight"]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)

    @jax.jit
    def apply(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.global_norm(grads)

    params, state = case.params, optimizer.init(case.params)
    try:
        for i in range(1 if case.num_words > 50_000 else 3):
            tokens = np.random.default_rng(10 + i).integers(0, case.num_words, (2, 13))
            params, state, norm = apply(params, state, case.step(params, tokens)[1])
            adamw.zero_grad()
            given = torch.tensor(tokens)
            case.model(given, labels=given).loss.backward()
            theirs = torch.nn.utils.clip_grad_norm_(named.values(), clip)
            assert abs(float(norm) / float(theirs) - 1) < 1e-3  # float32 sums of 39 million squares
            assert float(norm) > clip  # the clipping is at work
            for group in adamw.param_groups:
                group["lr"] = float(schedule(rate, 0.25, steps)(i))
            adamw.step()
        after = torch_names(params, case.num_words)
        far, moved = {}, {}
        for name, p in named.items():
            new, old = (without_key_bias(name, x.detach().numpy()) for x in (p, before[name]))
            got = without_key_bias(name, after[name])
            far[name] = distance(got, new)
            # How far it went, element by element: a wrong moment or rate shows here, not in the weights' own size.
            moved[name] = np.linalg.norm(got - new) / np.linalg.norm(new - old)
        assert max(far.values()) < BOUND, far
        assert max(moved.values()) < 2e-3, moved
    finally:
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(before[name])


def test_bfloat16_is_near(case):
    config = dataclasses.replace(case.policy.trunk.config, dtype="bfloat16")
    graph = empty_policy(config, case.policy.layout, np.zeros((case.policy.layout.num_items, 4), np.float32))[0]
    logits = jax.jit(lambda params: causal_logits(nnx.merge(graph, params, case.frozen), case.tokens))(case.params)
    assert logits.dtype == jnp.float32
    assert 1e-4 < distance(logits, case.theirs["logits"]) < BF16_BOUND
