"""A user's own reward beside the three signals: any function of context, reply and items, with the weight delta.

`--config.reward.function=FILE.py:NAME` (or `package.module:NAME`) names a function

  def reward(context: list[Spoken], reply: str, items: list[Item]) -> float

of the context's turns (`role`, `text`, `items`; the oldest may be trimmed), of what the reply says, and of the items it
proposes. It runs on the host, in one process, for every sampled reply; NaN is no opinion, so that the other signals'
weights are scaled up. A function, or a Flax model wrapped in one, that has the attribute `traced = True` is called
inside the compiled iteration instead, as

  reward(contexts: Contexts, tokens_BR, mask_BR, split: TokenMasks) -> float32 [B]

Either is standardised on reference samples like the signals, multiplied by `config.reward.delta`, and paid at the end
of the reply; the act alone has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.inputs.task import Task
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.sampling import Replies
from crs_jax.rl.scoring import TokenMasks
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.user_function import FLAG, load

LARGEST = 1e6  # beyond it float32 sums lose what the other signals say


@dataclasses.dataclass(frozen=True, eq=False)
class OwnReward:
    """The function with what turns tokens into words for it."""

    name: str
    function: Callable[..., Any]
    fingerprint: str
    tokenizer: DialogueTokenizer
    catalogue: Catalogue
    failures: list[Exception] = dataclasses.field(default_factory=list)

    @property
    def traced(self) -> bool:
        """Whether it runs inside the compiled program."""
        return bool(getattr(self.function, "traced", False))

    def of(self, prompt_P: np.ndarray, tokens_R: np.ndarray) -> float:
        """Of one reply. Raises what the function raises; `InputError` where it returns no number."""
        rows, text = self.tokenizer.decode_reply(tokens_R.tolist(), self.catalogue)
        context = self.tokenizer.decode_context(prompt_P.tolist(), self.catalogue)
        value = self.function(context, text, [self.catalogue.items[row] for row in rows])
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{FLAG}={self.name}: returned {value!r}, expected a number") from None
        if abs(number) > LARGEST:
            raise InputError(
                f"{FLAG}={self.name}: returned {number}, expected at most {LARGEST:g} or NaN for no opinion"
            )
        return number

    def check(self) -> None:
        """`InputError` where the function failed on a sampled reply: it is kept, since none can leave the program."""
        if self.failures:
            raise self.said(self.failures[0])

    def said(self, error: Exception) -> InputError:
        """The one line for what the function raised, or `of` of it."""
        if isinstance(error, InputError):
            return error
        found = InputError(f"{FLAG}={self.name}: failed on a reply: {type(error).__name__}: {error}")
        found.__cause__ = error
        return found

    def __call__(self, contexts: Contexts, replies: Replies, masks: TokenMasks) -> jax.Array:
        """Float32 `[B]` of B = C x G replies; inside jit."""
        tokens_BR, mask_BR = replies.tokens_BR, replies.mask_BR
        if self.traced:
            values_B = jnp.asarray(self.function(contexts, tokens_BR, mask_BR, masks), jnp.float32)
            if values_B.shape != (len(tokens_BR),):
                rule = f"a traced one returned {values_B.shape}, expected ({len(tokens_BR)},), one number a reply"
                raise InputError(f"{FLAG}={self.name}: {rule}")
            return values_B

        def host(prompt_CP, tokens_BR, mask_BR) -> np.ndarray:
            prompt_CP, tokens_BR, mask_BR = (np.asarray(a) for a in (prompt_CP, tokens_BR, mask_BR))
            group = len(tokens_BR) // len(prompt_CP)
            values_B = np.full(len(tokens_BR), np.nan, np.float32)
            try:
                for b, (row_R, real_R) in enumerate(zip(tokens_BR, mask_BR, strict=True)):
                    if real_R.any():  # after a seeker has left there is no reply
                        values_B[b] = self.of(prompt_CP[b // group], row_R[real_R])
            except Exception as error:
                self.failures.append(error)
            return values_B

        shape = jax.ShapeDtypeStruct((len(tokens_BR),), jnp.float32)
        return jax.pure_callback(host, shape, contexts.prompt_CP, tokens_BR, mask_BR, vmap_method="sequential")


def own_reward(task: Task) -> OwnReward | None:
    """The reward that the config names, tried on one human reply; None where it names none.

    Raises:
      InputError: it cannot be found or fails on that reply; it runs on the host and there are several processes.
    """
    name = task.config.reward.function
    if not name:
        return None
    function, fingerprint = load(name)
    own = OwnReward(name, function, fingerprint, task.tokenizer, task.corpus.catalogue)
    if own.traced:
        return own
    if jax.process_count() > 1:
        raise InputError(f"{FLAG}={name}: runs on the host, in one process; give it `traced = True` for several")
    where = task.replies("train")[:1]
    for d, t in where:
        before = [token for turn in task.encoded["train"][d][:t] for token in turn]
        try:
            own.of(np.array(before), np.array(task.encoded["train"][d][t][2:]))
        except Exception as error:
            found = own.said(error)
            raise found from found.__cause__
    return own
