"""What is named together: cosine similarity of items over the training dialogues that name them.

A dialogue that is trained on must not be its own features: what it names together would point at its own targets, and a
model would come to trust a hint that is not there on new dialogues. So for a training dialogue the counts leave out all
dialogues of its seeker and of its recommender.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import Dialogue

DAMPING = 3.0  # added to the count of an item: what was named once or twice proves little
SHARPNESS = 20.0


class CoOccurrence:
    """Counts of the training dialogues.

    cosine(x, j) = c(x, j) / sqrt((c(x) + d)(c(j) + d)), with c the number of dialogues that name an item, or both, and
    d `DAMPING`. A context's value for an item is log(1 + s * mean over the items named so far of their cosine with it),
    s `SHARPNESS`.
    """

    def __init__(self, train: Sequence[Dialogue], catalogue: Catalogue):
        """Counts distinct items by dialogue."""
        self.catalogue = catalogue
        sets = [catalogue.rows(dict.fromkeys(i for turn in d.turns for i in turn.items)) for d in train]
        starts = np.cumsum([0, *map(len, sets)])
        columns = np.array([row for rows in sets for row in rows], np.int32)
        shape = (len(sets), len(catalogue))
        self._occurs_DN = scipy.sparse.csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=shape)
        self._count_N = np.asarray(self._occurs_DN.sum(0)).ravel()
        self._together_NN = self._without_self(self._occurs_DN.T @ self._occurs_DN)
        self._place = {d.dialogue_id: n for n, d in enumerate(train)}
        self._of: dict[tuple[str, str], list[int]] = {}
        for n, d in enumerate(train):
            for person in self._persons(d):
                self._of.setdefault(person, []).append(n)

    @classmethod
    def of_counts(cls, count_N: np.ndarray, together_NN: scipy.sparse.csr_matrix, catalogue: Catalogue) -> CoOccurrence:
        """From another one's `counts`, without its dialogues: for dialogues that are none of them."""
        found = cls((), catalogue)
        found._count_N, found._together_NN = count_N, together_NN
        return found

    @property
    def counts(self) -> tuple[np.ndarray, scipy.sparse.csr_matrix]:
        """How many training dialogues name an item, float32 `[N]`, and two of them, `[N, N]`, its diagonal zero."""
        return self._count_N, self._together_NN

    @staticmethod
    def _without_self(counts_NN: scipy.sparse.spmatrix) -> scipy.sparse.csr_matrix:
        counts_NN = counts_NN.tolil()
        counts_NN.setdiag(0)
        return counts_NN.tocsr()

    @staticmethod
    def _persons(dialogue: Dialogue) -> list[tuple[str, str]]:
        found = [("seeker", dialogue.seeker_id), ("recommender", dialogue.recommender_id)]
        return [(role, person) for role, person in found if person is not None]

    def left_out(self, dialogue: Dialogue) -> list[int]:
        """Numbers of the training dialogues that are no evidence for this one; none for a dialogue of another split."""
        if dialogue.dialogue_id not in self._place:
            return []
        same = {n for person in self._persons(dialogue) for n in self._of[person]}
        return sorted(same | {self._place[dialogue.dialogue_id]})

    def neighbours(
        self, dialogues: Sequence[Dialogue], where: Sequence[tuple[int, int]], most: int = 512
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items named together with those named before each of the turns, the `most` highest.

        Returns:
          Rows int32 `[B, K]`, -1 padded, K = min(most, N), and values float32 `[B, K]`, above 0, 0 where padded.
        """
        K = min(most, len(self.catalogue))
        rows_BK, value_BK = np.full((len(where), K), -1, np.int32), np.zeros((len(where), K), np.float32)
        by_dialogue: dict[int, list[int]] = {}
        for b, (d, _) in enumerate(where):
            by_dialogue.setdefault(d, []).append(b)
        for d, contexts in by_dialogue.items():
            named = [self._named(dialogues[d], where[b][1]) for b in contexts]
            every = sorted({row for rows in named for row in rows})
            if not every:
                continue
            cosine_JN = self._cosines(every, self.left_out(dialogues[d]))
            place = {row: j for j, row in enumerate(every)}
            for b, rows in zip(contexts, named, strict=True):
                if rows:
                    mean_N = cosine_JN[[place[row] for row in rows]].mean(0)
                    top = np.argsort(-mean_N, kind="stable")[:K]
                    top = top[mean_N[top] > 0]
                    rows_BK[b, : len(top)] = top
                    value_BK[b, : len(top)] = np.log1p(SHARPNESS * mean_N[top])
        return rows_BK, value_BK

    def _named(self, dialogue: Dialogue, before: int) -> list[int]:
        return self.catalogue.rows(dict.fromkeys(i for turn in dialogue.turns[:before] for i in turn.items))

    def _cosines(self, rows: list[int], left_out: list[int]) -> np.ndarray:
        together_JN, count_N = self._together_NN[rows].toarray(), self._count_N
        if left_out:
            own_ON = self._occurs_DN[left_out]
            own_JN = (own_ON[:, rows].T @ own_ON).toarray()
            own_JN[np.arange(len(rows)), rows] = 0
            together_JN, count_N = together_JN - own_JN, count_N - np.asarray(own_ON.sum(0)).ravel()
        damped_N = 1 / np.sqrt(count_N + DAMPING)
        return together_JN * damped_N[rows][:, None] * damped_N
