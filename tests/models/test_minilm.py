"""The Flax encoder against sentence-transformers, with the same weights, and against itself."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hostile_files import change
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from waits import HANGS

from crs_jax.models.encoder import find_encoder
from crs_jax.models.minilm import MiniLM
from crs_jax.models.minilm_host import HostMiniLM
from crs_jax.runtime.errors import InputError

LONG = "I watched it with my kids on a rainy Sunday, and none of us could stop laughing at the talking llama. "
TEXTS = [
    "",
    " ",
    "Hi",
    "hi there!",
    "Have you seen The Matrix (1999)?",
    "Ich mag Filme wie Das Leben der Anderen (2006), ça te dit?",
    "I loved it 😀👍🏽 ... 映画が好き и ещё",
    "tab\tnew\nline\u200b zero\u00a0width \ufffc",
    "@123456 [SEP] [MASK] ##ing",
    "supercalifragilisticexpialidocious" * 8,
    "I am looking for a scary movie, something like It (2017) or The Conjuring (2013), but not too gory please.",
    LONG * 2,
    LONG * 3,
    LONG * 5,
    LONG * 20,
]
ORACLE = """
import json, sys, numpy
from sentence_transformers import SentenceTransformer
folder, texts, out = sys.argv[1:]
model = SentenceTransformer(folder, device="cpu")
model.max_seq_length = 128
numpy.save(out, model.encode(json.loads(texts), normalize_embeddings=True, batch_size=4))
"""


@pytest.fixture(scope="module")
def folder():
    return find_encoder(ConfigDict({"path": ""}))


@pytest.fixture(scope="module")
def model(folder):
    return MiniLM.load(folder)


def test_equals_sentence_transformers(folder, model, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", ORACLE, str(folder), json.dumps(TEXTS), str(tmp_path / "out.npy")]
    subprocess.run(command, env=environment, check=True, timeout=HANGS)
    expected = np.load(tmp_path / "out.npy")
    got = model.encode(TEXTS)
    assert got.dtype == np.float32
    assert got.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    # Far from what a wrong pooling or a lost text would give: distinct texts differ by much more than the tolerance.
    assert np.abs(got[2] - got[4]).max() > 0.05


def test_one_by_one_equals_together_in_any_order(model):
    together = model.encode(TEXTS)
    backwards = model.encode(TEXTS[::-1], batch_tokens=1024)[::-1]
    np.testing.assert_allclose(backwards, together, atol=2e-6)
    for n in (0, 2, 10, 14):
        np.testing.assert_allclose(model.encode([TEXTS[n]])[0], together[n], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_the_host_encodes_alike_and_each_text_by_itself(model):
    """In NumPy, for host functions of compiled programs: the same vectors, and the same bits whatever came before."""
    together = model.encode(TEXTS)
    host = HostMiniLM(model)
    backwards = [host(text) for text in TEXTS[::-1]][::-1]
    np.testing.assert_allclose(backwards, together, atol=3e-6)
    assert host("Hi") is host("Hi")
    np.testing.assert_array_equal(HostMiniLM(model)(TEXTS[10]), backwards[10])
    np.testing.assert_allclose(host("nice \ud83d"), host("nice ?"), atol=0)


def test_more_texts_than_a_batch_few_shapes_and_progress(folder):
    model = MiniLM.load(folder, max_tokens=16)
    texts = [f"movie number {n} is {'good ' * (n % 9)}" for n in range(70)]
    calls = []
    vectors = model.encode(texts, batch_tokens=256, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (70, 70)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert model._apply._cache_size() <= 2 * len(model.buckets)
    np.testing.assert_allclose(vectors[[3, 69]], model.encode([texts[3], texts[69]]), atol=2e-6)


def test_no_texts_and_half_a_surrogate(model):
    assert model.encode([]).shape == (0, 384)
    np.testing.assert_allclose(model.encode(["nice \ud83d"]), model.encode(["nice ?"]), atol=1e-6)


def test_cut_at_max_tokens(folder):
    short = MiniLM.load(folder, max_tokens=8)
    a, b = short.encode(["one two three four five six seven eight", "one two three four five six nine ten"])
    np.testing.assert_allclose(a, b, atol=1e-6)  # [CLS], six words, [SEP]
    for tokens in (2, 513):
        with pytest.raises(InputError, match="max_tokens is"):
            MiniLM.load(folder, max_tokens=tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mpnet"}, "config.json: model_type is 'mpnet'"),
        ({"hidden_act": "relu"}, "config.json: hidden_act is 'relu'"),
        ({"hidden_size": 256, "num_attention_heads": 8}, "tensor .* is .*config.json says"),
        ({"num_hidden_layers": 7}, "'encoder.layer.6.* is missing"),
    ],
)
def test_another_model_is_one_clear_line(folder, tmp_path, change, message):
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message) as caught:
        MiniLM.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_clear_line(folder, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors: not readable"):
        MiniLM.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        MiniLM.load(tmp_path)


def test_prefixed_half_precision_weights(folder, model, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path)
    arrays = load_file(folder / "model.safetensors")
    half = {f"bert.{name}": a.astype(np.float16) for name, a in arrays.items() if a.dtype == np.float32}
    save_file(half, tmp_path / "model.safetensors")
    got = MiniLM.load(tmp_path).encode(TEXTS[:4])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, model.encode(TEXTS[:4]), atol=2e-3)


@pytest.fixture
def small(tmp_path):
    """A BERT of one layer of width 8."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "##b"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": len(words), "max_position_embeddings": 16, "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    arrays = {f"embeddings.{n}_embeddings.weight": (rows, 8) for n, rows in
              (("word", 8), ("position", 16), ("token_type", 2))}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for name, out, into in (
        *((f"attention.self.{n}", 8, 8) for n in ("query", "key", "value")),
        *(("attention.output.dense", 8, 8), ("intermediate.dense", 16, 8), ("output.dense", 8, 16)),
    ):
        arrays |= {f"encoder.layer.0.{name}.weight": (out, into), f"encoder.layer.0.{name}.bias": (out,)}
    norms += [f"encoder.layer.0.{name}.LayerNorm" for name in ("attention.output", "output")]
    arrays |= {f"{name}.{end}": (8,) for name in norms for end in ("weight", "bias")}
    rng = np.random.default_rng(0)
    save_file({n: rng.normal(size=s).astype(np.float32) for n, s in arrays.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_any_change_of_an_encoder_loads_or_is_one_clear_error(small):
    """It may have come with an exported folder, from anybody."""
    assert MiniLM.load(small, 8).encode(["a b ab"]).shape == (1, 8)
    rng, whole, told = random.Random(0), {path.name: path.read_bytes() for path in small.iterdir()}, set()
    for _ in range(400):
        name, said = rng.choice(sorted(whole)), f"{small}: loads"
        change(small / name, rng)
        try:
            with np.errstate(all="ignore"):
                HostMiniLM(MiniLM.load(small, 8))("a b ab ba aaa")
        except InputError as error:
            said = str(error)
        assert str(small) in said or "max_tokens" in said
        assert len(said) < 700
        told.add(said.partition(":")[2][:40])
        (small / name).write_bytes(whole[name])
    assert len(told) > 30
