"""The prompts of `windows` as a tf.data pipeline with TensorFlow Text.

Usage: `python -m crs_jax.data.windows_tf IN.npz OUT.npz`.

Each dialogue is a ragged tensor of utterances, padded on the old side with k empty ones, so that `sliding_window` gives
one window of k utterances before every turn. Trimmers keep the front of a row: rows are reversed, trimmed, and reversed
back. It runs as a process of its own: TensorFlow and the sentence encoder's libraries cannot share one.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np

from crs_jax.runtime.program import show_help

DIALOGUES = 128  # in one step of the pipeline


def windows(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`tokens_BP` int32 and `mask_BP` bool, as `windows.context_windows` gives them.

    Args:
      arrays: tokens, token_start and dialogue_start (see `encoded.flatten`), where [B, 2], and the scalars window,
        context_tokens, pad, recommender, rec.
    """
    import tensorflow as tf
    import tensorflow_text as tf_text

    window, budget, pad, recommender, rec = (
        int(arrays[name]) for name in ("window", "context_tokens", "pad", "recommender", "rec")
    )
    dialogue_start, where_B2 = arrays["dialogue_start"], arrays["where"]
    corpus = tf.RaggedTensor.from_nested_row_splits(
        tf.constant(arrays["tokens"], tf.int32),
        [tf.constant(dialogue_start, tf.int64), tf.constant(arrays["token_start"], tf.int64)],
    )
    # Window `turn` of a dialogue stands before that turn; the one past the last turn makes one more window than turns.
    window_start = dialogue_start + np.arange(len(dialogue_start))
    number_B = window_start[where_B2[:, 0]] + where_B2[:, 1]
    wanted = np.zeros(int(window_start[-1]), bool)
    wanted[number_B] = True
    wanted_DT = tf.RaggedTensor.from_row_splits(tf.constant(wanted), tf.constant(window_start, tf.int64))
    trimmer = tf_text.WaterfallTrimmer(budget - 2)

    def prompts(at: Any) -> tuple[Any, Any]:
        turns_DTX = corpus[at : at + DIALOGUES]
        number = turns_DTX.nrows()
        empty_DTX = tf.RaggedTensor.from_uniform_row_length(
            tf.RaggedTensor.from_row_lengths(
                tf.zeros([0], tf.int32), tf.zeros(tf.expand_dims(number * window, 0), tf.int64)
            ),
            tf.constant(window, tf.int64),
        )
        windows_DTKX = tf_text.sliding_window(tf.concat([empty_DTX, turns_DTX], axis=1), width=window, axis=1)
        rows_BX = windows_DTKX.merge_dims(2, 3).merge_dims(0, 1)
        rows_BX = tf.ragged.boolean_mask(rows_BX, wanted_DT[at : at + DIALOGUES].values)
        newest_first_BX = trimmer.trim([tf.reverse(rows_BX, [1])])[0]
        opening_BX = tf.tile([[rec, recommender]], [newest_first_BX.nrows(), 1])
        newest_first_BX = tf.concat([opening_BX, newest_first_BX], axis=1)
        padded_BP = newest_first_BX.to_tensor(default_value=pad, shape=[None, budget])
        mask_BP = tf.sequence_mask(newest_first_BX.row_lengths(), budget)
        return tf.reverse(padded_BP, [1]), tf.reverse(mask_BP, [1])

    steps = tf.data.Dataset.range(0, len(dialogue_start) - 1, DIALOGUES)
    steps = steps.map(prompts, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
    parts = list(steps.as_numpy_iterator())
    tokens = np.concatenate([np.zeros((0, budget), np.int32), *(tokens for tokens, _ in parts)])
    mask = np.concatenate([np.zeros((0, budget), bool), *(mask for _, mask in parts)])
    _, order_B = np.unique(number_B, return_inverse=True)
    return tokens[order_B], mask[order_B]


def main(argv: list[str]) -> int:
    """Reads the arrays of IN.npz, writes tokens_BP and mask_BP to OUT.npz."""
    if len(argv) != 2:
        print("usage: python -m crs_jax.data.windows_tf IN.npz OUT.npz", file=sys.stderr)
        return 2
    with np.load(pathlib.Path(argv[0])) as file:
        tokens_BP, mask_BP = windows(dict(file))
    np.savez(argv[1], tokens_BP=tokens_BP, mask_BP=mask_BP)
    return 0


if __name__ == "__main__":
    show_help(__name__, __doc__)
    sys.exit(main(sys.argv[1:]))
