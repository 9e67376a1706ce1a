"""Prompts: the last k utterances before a turn, trimmed to a budget of tokens from the old end."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from crs_jax.data.encoded import Encoded, flatten
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Prompts of B turns, P tokens each.

    Attributes:
      tokens_BP: int32, left-padded; the last two columns are always `<|recommender|> <|rec|>`.
      mask_BP: bool, True at real tokens.
    """

    tokens_BP: np.ndarray
    mask_BP: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_BP)


def context_windows(
    encoded: Encoded,
    where: Sequence[tuple[int, int]],
    window: int,
    context_tokens: int,
    tokenizer: DialogueTokenizer,
    opening: tuple[int, ...] | None = None,
) -> Contexts:
    """Prompts for replies at the given turns.

    A dialogue's turns lie side by side in memory, so each prompt is a slice that ends where its turn begins.

    Args:
      encoded: tokens of each turn.
      where: (dialogue, turn) of each prompt. The turn's own tokens are no part of it; turn may be one past the last
        for a reply that is still to be said.
      window: k, utterances of context.
      context_tokens: P, most tokens, the final `<|recommender|> <|rec|>` included.
      opening: another end than those two, such as `<|seeker|>` alone.

    Raises:
      InputError: window below 1, context_tokens below 2.
    """
    check_budget(window, context_tokens)
    tokens, token_start, dialogue_start = flatten(encoded)
    where_B2 = np.asarray(where, np.int64).reshape(-1, 2)
    check_places(where_B2, dialogue_start)
    first_B, turn_B = dialogue_start[where_B2[:, 0]], where_B2[:, 1]
    end_B = token_start[first_B + turn_B]
    start_B = token_start[first_B + np.maximum(turn_B - window, 0)]

    opening = opening or (tokenizer.recommender, tokenizer.rec)
    room = context_tokens - len(opening)
    at_BP = end_B[:, None] + np.arange(-room, 0)
    real_BP = at_BP >= start_B[:, None]
    tokens_BP = np.full((len(where_B2), context_tokens), tokenizer.pad, np.int32)
    tokens_BP[:, room:] = opening
    tokens_BP[:, :room][real_BP] = tokens[at_BP[real_BP]]
    mask_BP = np.ones(tokens_BP.shape, bool)
    mask_BP[:, :room] = real_BP
    return Contexts(tokens_BP, mask_BP)


def make_windows(
    config: ConfigDict, encoded: Encoded, where: Sequence[tuple[int, int]], tokenizer: DialogueTokenizer
) -> Contexts:
    """`context_windows` with `config.data.window` and `.context_tokens`, by the pipeline `config.data.pipeline` names.

    `tftext` runs in a process of its own: TensorFlow and the sentence encoder's libraries cannot share one. It leaves
    accelerators alone. The arrays are the same.
    """
    window, context_tokens = config.data.window, config.data.context_tokens
    if config.data.pipeline == "numpy":
        return context_windows(encoded, where, window, context_tokens, tokenizer)
    if config.data.pipeline != "tftext":
        raise InputError(f"--config.data.pipeline={config.data.pipeline}: take numpy or tftext")
    check_budget(window, context_tokens)
    tokens, token_start, dialogue_start = flatten(encoded)
    where_B2 = np.asarray(where, np.int64).reshape(-1, 2)
    check_places(where_B2, dialogue_start)
    with tempfile.TemporaryDirectory() as folder:
        source, result = pathlib.Path(folder) / "in.npz", pathlib.Path(folder) / "out.npz"
        np.savez(
            source, tokens=tokens, token_start=token_start, dialogue_start=dialogue_start, where=where_B2,
            window=window, context_tokens=context_tokens, pad=tokenizer.pad, recommender=tokenizer.recommender,
            rec=tokenizer.rec,
        )  # fmt: skip
        root = pathlib.Path(__file__).resolve().parents[2]
        run = subprocess.run(
            [sys.executable, "-m", "crs_jax.data.windows_tf", str(source), str(result)],
            capture_output=True, encoding="utf-8", errors="replace", cwd=root,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )  # fmt: skip
        if run.returncode:
            last = (run.stderr.strip() or "no message").splitlines()[-1]
            raise InputError(
                f"--config.data.pipeline=tftext failed ({last}); install the extra crs-jax[tftext], or take numpy"
            )
        with np.load(result) as arrays:
            return Contexts(arrays["tokens_BP"], arrays["mask_BP"])


def check_budget(window: int, context_tokens: int) -> None:
    """`InputError` where no prompt fits."""
    if window < 1:
        raise InputError(f"--config.data.window={window}: take at least 1 utterance")
    if context_tokens < 2:
        raise InputError(f"--config.data.context_tokens={context_tokens}: the reply's opening alone takes 2")


def check_places(where_B2: np.ndarray, dialogue_start: np.ndarray) -> None:
    """`ValueError` where a (dialogue, turn) is outside the corpus; the turn may be one past the dialogue's last."""
    dialogue_B, turn_B = where_B2[:, 0], where_B2[:, 1]
    inside_B = (dialogue_B >= 0) & (dialogue_B < len(dialogue_start) - 1) & (turn_B >= 0)
    lengths = np.diff(dialogue_start)
    inside_B[inside_B] &= turn_B[inside_B] <= lengths[dialogue_B[inside_B]]
    if not inside_B.all():
        raise ValueError(f"no such (dialogue, turn): {tuple(where_B2[~inside_B][0].tolist())}")
