"""Which contexts an iteration of PPO starts from, and how wide its prompts are.

Prompts are padded on the left to `config.data.context_tokens`, which few are long enough for. With `config.ppo.buckets`
above 1 the batches of a pass are of prompts of about one length, and each is as wide as its longest needs, in one of as
many widths: the same numbers for less work, by one compiled program for each width that occurs.
"""

from __future__ import annotations

import numpy as np


def chosen(seed: int, iteration: int, total: int, count: int) -> np.ndarray:
    """Numbers of the contexts of an iteration: passes over all contexts, each in an order of its own."""
    places = np.arange(iteration * count, (iteration + 1) * count)
    orders = {int(p): np.random.default_rng([seed, 11, int(p)]).permutation(total) for p in np.unique(places // total)}
    return np.array([orders[int(at // total)][at % total] for at in places])


def widths_of(longest: int, buckets: int) -> tuple[int, ...]:
    """Widths of prompts, in rising order and about evenly apart; the last is `longest` tokens."""
    return tuple(sorted({-(-longest * (number + 1) // buckets) for number in range(buckets)}))


class Batches:
    """The batches of a run, by the number of the iteration.

    Args:
      length_C: tokens of each context's prompt.
      count: contexts of a batch.
      longest: the width that prompts are padded to.
      buckets: widths; 1: all batches are of all lengths and `longest` wide.
      seed: of the order.
    """

    def __init__(self, length_C: np.ndarray, count: int, longest: int, buckets: int, seed: int) -> None:
        self.widths = widths_of(longest, buckets)
        self._length_C, self._count, self._seed = np.asarray(length_C), count, seed
        self._bucket_C = np.searchsorted(self.widths, self._length_C)

    def __call__(self, iteration: int) -> tuple[np.ndarray, int]:
        """Numbers of the contexts of iteration 0, 1, ..., and how wide its prompts are.

        With buckets, a pass over all contexts is cut into whole batches; the fewer than `count` contexts that are left
        over are others in each pass.
        """
        total, each = len(self._length_C), len(self._length_C) // self._count
        if len(self.widths) == 1 or not each:
            index = chosen(self._seed, iteration, total, self._count)
        else:
            rng = np.random.default_rng([self._seed, 12, iteration // each])
            order = rng.permutation(total)[: each * self._count]
            order = order[np.argsort(self._bucket_C[order], kind="stable")].reshape(each, self._count)
            index = order[rng.permutation(each)[iteration % each]]
        return index, self.widths[int(self._bucket_C[index].max())]
