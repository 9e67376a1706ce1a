"""MiniLM's forward pass in NumPy, for host functions that a compiled program calls.

Such a function must not run another compiled program on the device that waits for it. Texts are encoded one by one and
on one thread, so that a vector depends on its text alone, to the last bit; products as small as these gain nothing from
more, and lose much where cores are busy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
from threadpoolctl import ThreadpoolController

from crs_jax.models.minilm import MiniLM


class HostMiniLM:
    """The arithmetic of `MiniLM.encode`, text by text; vectors are kept."""

    def __init__(self, encoder: MiniLM):
        """Copies the weights to the host."""
        self._encoder, self._settings = encoder, encoder.settings
        self._arrays: Any = encoder.host_arrays()
        self._known: dict[str, np.ndarray] = {}
        self._threads = ThreadpoolController()

    def __call__(self, text: str) -> np.ndarray:
        """Unit vector `[D]` float32."""
        if text not in self._known:
            clean = text.encode("utf-8", "replace").decode("utf-8")
            with self._threads.limit(limits=1, user_api="blas"):
                self._known[text] = self._encode(self._encoder.tokenizer.encode(clean).ids)
        return self._known[text]

    def _encode(self, ids: list[int]) -> np.ndarray:
        a, epsilon = self._arrays, self._settings.epsilon
        T, D, H = len(ids), self._settings.width, self._settings.heads
        x_TD = a["word_embedding"][ids] + a["position_embedding"][:T] + a["type_embedding"]
        x_TD = _layer_norm(x_TD, a["scale"], a["shift"], epsilon)
        for n in range(self._settings.layers):
            layer = {name: array[n] for name, array in a["layers"].items()}
            qkv = (x_TD @ layer["qkv_kernel"] + layer["qkv_bias"]).reshape(T, 3, H, D // H)
            q_HTK, k_HTK, v_HTK = qkv.transpose(1, 2, 0, 3)
            logits_HTS = q_HTK @ k_HTK.transpose(0, 2, 1) * np.float32((D // H) ** -0.5)
            weights_HTS = np.exp(logits_HTS - logits_HTS.max(-1, keepdims=True))
            weights_HTS /= weights_HTS.sum(-1, keepdims=True)
            mixed_TD = (weights_HTS @ v_HTK).transpose(1, 0, 2).reshape(T, D)
            attended_TD = mixed_TD @ layer["out_kernel"] + layer["out_bias"]
            x_TD = _layer_norm(x_TD + attended_TD, layer["attention_scale"], layer["attention_shift"], epsilon)
            up = x_TD @ layer["up_kernel"] + layer["up_bias"]
            up = up * np.float32(0.5) * (1 + scipy.special.erf(up * np.float32(0.5**0.5)))
            down_TD = up @ layer["down_kernel"] + layer["down_bias"]
            x_TD = _layer_norm(x_TD + down_TD, layer["mlp_scale"], layer["mlp_shift"], epsilon)
        mean_D = x_TD.mean(0)
        return (mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)).astype(np.float32)


def _layer_norm(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(epsilon)) * scale + shift
