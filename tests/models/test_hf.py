"""GPT-2 in and out of the Hugging Face format, against transformers' own model in torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from crs_jax.models import hf
from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy
from crs_jax.models.weights import SINGLE
from crs_jax.runtime.errors import InputError

V, N, LAYERS, WIDTH, HEADS, POSITIONS = 97, 5, 3, 24, 4, 32
TOKENS = np.random.default_rng(0).integers(0, V, (2, 11))


def make_policy(seed=0, positions=POSITIONS, layers=LAYERS, words=V):
    layout = Layout(words, words + 6, N, 2, *range(words, words + 6))
    content = np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32)
    return Policy(GPT2Config(layers, WIDTH, HEADS, positions), layout, content, rngs=nnx.Rngs(seed))


def word_logits(policy, tokens):
    """Logits over the words alone, causal, with float32 products."""
    with jax.default_matmul_precision("float32"):
        x = policy.words[...][tokens]
        T = tokens.shape[1]
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (len(tokens), T, T))
        hidden = policy.trunk(x, jnp.arange(T)[None], mask)
        return np.asarray(hidden @ policy.words[...][: policy.layout.num_words].T)


@pytest.fixture(scope="module")
def torch_model():
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config as TorchConfig
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    config = TorchConfig(
        vocab_size=V, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1 and would hide a swap
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


@pytest.fixture(scope="module")
def saved(torch_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    torch_model.save_pretrained(folder)
    return folder


def assert_close(got, expected):
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-5
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_logits_equal_torch(torch_model, saved):
    checkpoint = hf.load(saved)
    assert (checkpoint.config.layers, checkpoint.config.heads, checkpoint.config.positions) == (3, 4, 32)
    policy = make_policy()
    expected = torch_logits(torch_model, TOKENS)
    assert np.abs(word_logits(policy, TOKENS) - expected).max() > 0.1
    hf.fill(policy, checkpoint)
    assert_close(word_logits(policy, TOKENS), expected)


def test_sharded_and_without_prefix(torch_model, saved, tmp_path):
    torch_model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    bare = tmp_path / "bare"
    bare.mkdir()
    arrays = {name.removeprefix("transformer."): array for name, array in load_file(saved / SINGLE).items()}
    assert "wte.weight" in arrays
    arrays["h.0.attn.bias"] = np.tril(np.ones((1, 1, POSITIONS, POSITIONS), np.float32))  # older files hold the mask
    save_file(arrays, bare / SINGLE)
    (bare / "config.json").write_text((saved / "config.json").read_text())
    wanted = hf.load(saved)
    for folder in (tmp_path / "sharded", bare):
        got = hf.load(folder)
        jax.tree.map(np.testing.assert_array_equal, (got.trunk, got.words), (wanted.trunk, wanted.words))


def test_export_loads_in_transformers_with_equal_logits(tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    policy = make_policy(seed=3)
    noise = np.random.default_rng(2)
    state = jax.tree.map(
        lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), nnx.state(policy, nnx.Param)
    )
    nnx.update(policy, state)
    left_out = hf.export(policy, tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert left_out
    assert all(line in readme for line in left_out)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_close(torch_logits(model.eval(), TOKENS)[..., :V], word_logits(policy, TOKENS))
    ids = model.config
    assert (ids.vocab_size, ids.eos_token_id, ids.pad_token_id, ids.bos_token_id) == (V + 6, V + 5, V, None)


def test_an_exported_model_says_the_words_that_the_policy_says(tmp_path):
    """After words and controls; the end's logit is the product with the vector given."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    policy = make_policy(seed=3)
    policy.words[...] *= 20  # logits far from even
    ending = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    hf.export(policy, tmp_path, ending)
    tokens = TOKENS.copy()
    tokens[:, [0, 3, 4, 5, 6]] = [V + 1, V + 5, V + 2, V + 3, V + 4]
    logits = torch.tensor(torch_logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokens))
    found = torch.log_softmax(logits[..., :V], -1).numpy()
    T = tokens.shape[1]
    with jax.default_matmul_precision("float32"):
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (len(tokens), T, T))
        tables = policy.tables()
        hidden = policy.trunk(policy.embed(tokens, tables), jnp.arange(T)[None], mask)
        expected = policy.word_logits(hidden, tables, jnp.full((*tokens.shape, 2), -1)).main[..., :V]
    assert np.std(expected) > 1
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(logits[..., V + 5], hidden @ ending, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(hf.load(tmp_path).words, policy.words[...][:V])


def test_round_trip_is_bit_equal(saved, tmp_path):
    policy = make_policy()
    checkpoint = hf.load(saved)
    hf.fill(policy, checkpoint)
    hf.export(policy, tmp_path)
    again = hf.load(tmp_path)
    assert again.config == checkpoint.config
    jax.tree.map(np.testing.assert_array_equal, (again.trunk, again.words), (checkpoint.trunk, checkpoint.words))
    original, written = load_file(saved / SINGLE), load_file(tmp_path / SINGLE)
    assert set(written) == set(original) - {"lm_head.weight"}
    for name, array in written.items():
        array = array[:V] if name == "transformer.wte.weight" else array  # controls stand behind the words
        np.testing.assert_array_equal(array, original[name], err_msg=name)


def test_fill_leaves_items_and_controls_which_are_read_around_the_mean_word(saved):
    policy, fresh = make_policy(positions=16), make_policy(positions=16)
    checkpoint = hf.load(saved)
    hf.fill(policy, checkpoint)
    layout, mean = policy.layout, checkpoint.words.mean(0)
    np.testing.assert_array_equal(policy.words[...][:V], checkpoint.words)
    np.testing.assert_array_equal(policy.words[...][V:], fresh.words[...][V:])
    tokens = np.arange(V, layout.item_offset + layout.num_items)
    new = policy.embed(tokens, policy.tables()) - mean
    items = np.asarray(fresh.items.residual[...] + fresh.items.content[...] @ fresh.items.projection[...])
    np.testing.assert_allclose(new[:6], fresh.controls[...], atol=1e-6)
    np.testing.assert_allclose(new[6:], items[: layout.num_items], atol=1e-5)
    assert policy.trunk.positions[...].shape == (16, WIDTH)
    np.testing.assert_array_equal(policy.trunk.positions[...], checkpoint.trunk["positions"][:16])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"positions": 64}, "--config.model.positions is 64"),
        ({"layers": 2}, "layers is 3, the model has 2"),
        ({"words": 50}, "97 words, the tokenizer has 50; set --config.tokenizer.kind=gpt2"),
    ],
)
def test_fill_refuses_another_shape(saved, policy, message):
    with pytest.raises(InputError, match=message):
        hf.fill(make_policy(**policy), hf.load(saved))


def rewritten(saved, folder, config=None, arrays=None):
    settings = json.loads((saved / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    tensors = load_file(saved / SINGLE)
    save_file({k: v for k, v in {**tensors, **(arrays or {})}.items() if v is not None}, folder / SINGLE)
    return folder


@pytest.mark.parametrize(
    ("config", "arrays", "message"),
    [
        ({"model_type": "llama"}, {}, "model_type is 'llama'"),
        ({"activation_function": "relu"}, {}, "activation_function is 'relu'"),
        ({"n_inner": 7}, {}, "n_inner is 7"),
        ({"scale_attn_by_inverse_layer_idx": True}, {}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_head": 5}, {}, "n_embd 24 is not a multiple of n_head 5"),
        ({"vocab_size": 98}, {}, r"'wte.weight' is \(97, 24\), config.json says \(98, 24\)"),
        ({}, {"transformer.h.1.mlp.c_fc.bias": None}, "'h.1.mlp.c_fc.bias' is missing"),
        ({}, {"lm_head.weight": np.zeros((V, WIDTH), np.float32)}, "only tied embeddings"),
    ],
)
def test_what_is_not_this_gpt2_is_one_clear_line(saved, tmp_path, config, arrays, message):
    with pytest.raises(InputError, match=message) as caught:
        hf.load(rewritten(saved, tmp_path, config, arrays))
    assert "\n" not in str(caught.value)


def test_pickles_missing_weights_and_ids_without_revision_are_refused(saved, tmp_path):
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(InputError, match="no weights"):
        hf.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"only pytorch_model\.bin, a pickle"):
        hf.load(tmp_path)
    for source in ("some/model", "no-such-folder", "a b@main"):
        with pytest.raises(InputError, match="needs its revision"):
            hf.load(source)


def test_hub_ids_are_pinned(monkeypatch, saved):
    calls = []

    def snapshot_download(repository, revision, allow_patterns):
        calls.append((repository, revision))
        assert not any(pattern.endswith((".bin", "*")) for pattern in allow_patterns)
        return saved

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for source in ("gpt2-medium", "openai-community/gpt2-medium", "me/mine@v1"):
        hf.load(source)
    medium = ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da")
    assert calls == [medium, medium, ("me/mine", "v1")]
