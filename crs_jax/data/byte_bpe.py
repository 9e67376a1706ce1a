"""Byte-level BPE without special tokens: trained here, or GPT-2's own. Any text goes in and comes back unchanged."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from crs_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GPT2_HUB = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
GPT2_WORDS = 50_257
GPT2_END_OF_TEXT = "<|endoftext|>"  # id 50256: in GPT-2's vocabulary, out of reach of its merges


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains on the texts, whitespace runs made one space and a space put in front of each, as utterances are encoded.

    The same texts give the same vocabulary. A small corpus can give fewer than `vocab_size` words; the 256 bytes are
    always among them.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet):
        raise InputError(f"--config.tokenizer.vocab_size={vocab_size}: a byte-level BPE has at least 256 words")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    bpe.train_from_iterator((" " + " ".join(clean(text).split()) for text in texts), trainer)
    return bpe


def gpt2(path: str) -> Tokenizer:
    """GPT-2's BPE, from a folder or (path empty) from the hub; `InputError` where a file is missing or not GPT-2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab_file, merges_file = _gpt2_files(path)
    try:
        vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
        lines = merges_file.read_text(encoding="utf-8").split("\n")
        pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
        bpe = Tokenizer(models.BPE(vocab=vocab, merges=[(left, right) for left, right in pairs]))
    except Exception as error:  # the library raises a bare Exception for a merge that is out of the vocabulary
        raise InputError(f"{vocab_file}, {merges_file}: not a BPE vocabulary and its merges ({error})") from None
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = bpe.get_vocab_size(with_added_tokens=False)
    if words != GPT2_WORDS or bpe.encode("Hello world!").ids != [15496, 995, 0]:
        raise InputError(
            f"{vocab_file}: {words} words, not GPT-2's {GPT2_WORDS} with its ids; point --config.tokenizer.path at "
            "GPT-2's own files, or leave it empty for the hub"
        )
    return bpe


def rebuilt(found: Any) -> Tokenizer:
    """The byte-level BPE with the vocabulary and the merges of a file in the `tokenizers` format.

    Nothing else of the file is used, so that the library's parser gets only what was checked here.

    Raises:
      ValueError: they are no such vocabulary and merges; KeyError and TypeError where the file has another form.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab, merges = found["model"]["vocab"], found["model"]["merges"]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    numbers = [number for number in vocab.values() if type(number) is int]
    if sorted(numbers) != list(range(len(vocab))):
        raise ValueError(f"the numbers of its {len(vocab)} words are not 0 to {len(vocab) - 1}")
    if not alphabet <= vocab.keys() or not alphabet.issuperset("".join(vocab.keys() - {GPT2_END_OF_TEXT})):
        raise ValueError("its words are not made of the 256 bytes")
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise ValueError(f"the merge {pair!r:.80} is not of two of its words to a third")
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return bpe


def clean(text: str) -> str:
    """Lone surrogates, which JSON can hold and UTF-8 cannot, become '?'."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def word_bytes(vocab: dict[str, int]) -> tuple[list[bytes], list[int]]:
    """Bytes of each id by the byte-to-character table of byte-level BPE; and the ids that stand for no bytes.

    The table (Radford et al. 2019, GPT-2): printable Latin-1 bytes stand for themselves, the other 68
    for U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(0x100 + n): byte for n, byte in enumerate(b for b in range(256) if b not in byte_of.values())}
    out, unused = [b""] * len(vocab), []
    for word, number in vocab.items():
        if word == GPT2_END_OF_TEXT:
            unused.append(number)
        else:
            out[number] = bytes(byte_of[character] for character in word)
    return out, unused


def _gpt2_files(path: str) -> tuple[pathlib.Path, pathlib.Path]:
    if path:
        folder = pathlib.Path(path).expanduser()
        for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if all((folder / name).is_file() for name in names):
                return folder / names[0], folder / names[1]
        raise InputError(
            f"--config.tokenizer.path={path}: no vocab.json and merges.txt there (nor encoder.json, vocab.bpe)"
        )
    from huggingface_hub import hf_hub_download

    try:
        vocab, merges = (
            hf_hub_download(GPT2_HUB, name, revision=GPT2_REVISION) for name in ("vocab.json", "merges.txt")
        )
    except Exception as error:
        kind = type(error).__name__
        raise InputError(
            f"--config.tokenizer.path is empty and {GPT2_HUB} cannot be read from the hub ({kind}); "
            "give a folder with vocab.json and merges.txt, or --config.tokenizer.kind=bpe"
        ) from None
    return pathlib.Path(vocab), pathlib.Path(merges)
