"""What transformers needs beside the weights: a tokenizer that decodes and has the controls, and how `generate` ends.

Text in, `AutoTokenizer` reads as the policy does: the name of a control in it stays words. A dialogue is put into
tokens by the chat template, whose controls are meant: `split_special_tokens=False`.
"""

from __future__ import annotations

import pathlib
from typing import Any

from crs_jax.data.tokenizer import CONTROLS, DialogueTokenizer
from crs_jax.runtime.json_files import write_json

TEMPLATE = """\
{%- for message in messages %}
{%- if message['content'] is string %}{% set said = message['content'] %}
{%- else %}{% set said = message['content'] | selectattr('type', 'eq', 'text') | map(attribute='text') | join(' ') %}{% endif %}
{%- set words = ' ' ~ (said.split() | join(' ') | replace('<|', '< |')) ~ '<|end|>' %}
{%- if message['role'] in ('user', 'seeker') %}{{ '<|seeker|>' ~ words }}
{%- elif message['role'] in ('assistant', 'recommender') %}{{ '<|recommender|><|rec|><|say|>' ~ words }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|recommender|><|rec|><|say|>' }}{% endif %}"""  # noqa: E501
"""A dialogue as the policy reads one in which no item is named; a system message is left out, as in the API."""


def write_tokenizer(tokenizer: DialogueTokenizer, folder: pathlib.Path, name: str, positions: int) -> None:
    """Completes the words' tokenizer, file `name` as `DialogueTokenizer.save` wrote it: a decoder, and the controls
    behind the words.
    """
    words = completed_words((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(words, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_settings(positions))


def completed_words(saved: str) -> str:
    """The words' tokenizer in the `tokenizers` format with a decoder, and the controls behind the words."""
    from tokenizers import AddedToken, Tokenizer, decoders

    words = Tokenizer.from_str(saved)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([AddedToken(control, special=True, normalized=False) for control in CONTROLS])
    return words.to_str()


def tokenizer_settings(positions: int) -> dict[str, Any]:
    """The `tokenizer_config.json`."""
    pad, *others, end = CONTROLS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "bos_token": None,
        "unk_token": None,
        "eos_token": end,
        "pad_token": pad,
        "extra_special_tokens": others,
        "padding_side": "left",
        "model_max_length": positions,
        "chat_template": TEMPLATE,
    }


def write_generation(tokenizer: DialogueTokenizer, folder: pathlib.Path, reply_tokens: int) -> None:
    """Writes `generation_settings`."""
    write_json(folder / "generation_config.json", generation_settings(tokenizer, reply_tokens))


def generation_settings(tokenizer: DialogueTokenizer, reply_tokens: int) -> dict[str, Any]:
    """How `generate` goes: words alone, until `<|end|>` or the length of the policy's own replies."""
    t = tokenizer
    return {
        "eos_token_id": t.end,
        "pad_token_id": t.pad,
        "suppress_tokens": [*t.unused, t.pad, t.seeker, t.recommender, t.rec, t.say],
        "max_new_tokens": reply_tokens,
    }
