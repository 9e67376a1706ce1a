"""Rankings that need no language model; fitted on training dialogues alone.

Every row is `scores [I, N]`, finite, higher is better. ReDial's test set, fresh targets, full catalogue, R@1/10/50:

  fitted on                4,101 dialogues      3,181 (without validation)
  popularity               .013 .059 .163       .013 .058 .161
  similarity               .012 .044 .098       (nothing is fitted)
  co-occurrence            .034 .152 .307       .031 .142 .295
  mix                      .035 .165 .335       .036 .159 .331

(both columns with the mix's weights tuned on 400 validation dialogues against the counts of the 3,181).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import RECOMMENDER, Dialogue
from crs_jax.data.instances import Instance
from crs_jax.evaluation.pairs import Pairs, make_pairs, named_before
from crs_jax.signals.relevance import query

ROWS = ("popularity", "copy", "similarity", "cooccurrence", "mix")


class Popularity:
    """How often recommenders name an item in training; the number of dialogues that name it breaks ties.

    Recommenders only: what seekers like is better known, and older, than what is proposed to them.
    """

    def __init__(self, train: Sequence[Dialogue], catalogue: Catalogue) -> None:
        """Counts; `mentions_N` by recommenders, `dialogues_N` with such a mention."""
        self.mentions_N, self.dialogues_N = np.zeros((2, len(catalogue)))
        for dialogue in train:
            named: list[int] = []
            for turn in dialogue.turns:
                if turn.role == RECOMMENDER:
                    named += catalogue.rows(turn.items)
            np.add.at(self.mentions_N, named, 1)
            self.dialogues_N[list(set(named))] += 1
        self.score_N = (self.mentions_N + self.dialogues_N / (self.dialogues_N.max() + 1)).astype(np.float32)

    @property
    def probability_N(self) -> np.ndarray:
        """Share of the mentions with half a mention added to each item, so never 0; sums to 1."""
        smooth_N = self.mentions_N + 0.5
        return smooth_N / smooth_N.sum()

    def scores(self, instances: Sequence[Instance], dialogues: Sequence[Dialogue]) -> np.ndarray:
        """The same scores for every instance, float32 [I, N]."""
        return np.broadcast_to(self.score_N, (len(instances), len(self.score_N)))


class Copy:
    """Repeats what was named: the most recently named item first, everything never named tied below."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Nothing is fitted."""
        self.catalogue = catalogue

    def scores(self, instances: Sequence[Instance], dialogues: Sequence[Dialogue]) -> np.ndarray:
        """1, 1/2, 1/3, ... from the most recently named back, float32 [I, N]."""
        scores_IN = np.zeros((len(instances), len(self.catalogue)), np.float32)
        for i, rows in enumerate(named_before(instances, dialogues, self.catalogue)):
            scores_IN[i, list(rows)] = 1 / np.arange(len(rows), 0, -1)
        return scores_IN


class Cooccurrence:
    """What is named in the same training dialogues as the items named so far.

    p(x | j) = (c(x, j) + s p(x)) / (sum_x c(x, j) + s), with c the number of training dialogues that name both, p(x)
    the popularity and s the smoothing; an instance's score is the mean over the items named so far, p(x) without any.
    Counts are symmetric: which was named first, and by whom, is ignored. (Counting only what recommenders named later
    halves the features: .025/.117/.268 on ReDial's test set where this reaches .034/.152/.307.)
    """

    def __init__(self, train: Sequence[Dialogue], catalogue: Catalogue, smoothing: float = 10.0) -> None:
        """Counts. Smoothing is positive; ReDial's validation is flat between 3 and 30."""
        if not smoothing > 0:
            raise ValueError(f"smoothing is {smoothing}, expected a positive number")
        self.catalogue, self.smoothing = catalogue, smoothing
        self.popularity_N = Popularity(train, catalogue).probability_N
        sets = [catalogue.rows(dict.fromkeys(i for turn in d.turns for i in turn.items)) for d in train]
        occurs_DN = _incidence(sets, len(catalogue))
        together_NN = (occurs_DN.T @ occurs_DN).tolil()
        together_NN.setdiag(0)
        self.together_NN = together_NN.tocsr()
        self.total_N = np.asarray(self.together_NN.sum(1)).ravel()

    def scores(self, instances: Sequence[Instance], dialogues: Sequence[Dialogue]) -> np.ndarray:
        """Probabilities, float32 [I, N], each row sums to 1."""
        named = named_before(instances, dialogues, self.catalogue)
        count_I = np.array([max(len(rows), 1) for rows in named])
        weight_N = 1 / (self.total_N + self.smoothing)
        share_IN = _incidence(named, len(self.catalogue)).multiply(weight_N[None]).tocsr()
        share_IN = scipy.sparse.diags(1 / count_I) @ share_IN
        backoff_I = np.asarray(share_IN.sum(1)).ravel() * self.smoothing
        backoff_I[[not rows for rows in named]] = 1.0
        scores_IN = (share_IN @ self.together_NN).astype(np.float32).toarray()
        scores_IN += backoff_I[:, None].astype(np.float32) * self.popularity_N[None].astype(np.float32)
        return scores_IN


class Similarity:
    """Cosine of the context's sentence embeddings with the item's: `signals.relevance`, the exact reward signal."""

    def __init__(self, items_NE: np.ndarray) -> None:
        """Unit embeddings of the items' descriptions."""
        self.items_NE = np.asarray(items_NE, np.float32)

    def scores(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Relevance of every item, float32 [I, N]; `vectors` from `signals.relevance.context_vectors`."""
        return np.asarray(query(jnp.asarray(vectors["text_BE"]), jnp.asarray(vectors["named_BE"]))) @ self.items_NE.T


class Mix:
    """Log-linear mix: softmax over items of a weighted sum of the other rows' features.

    Weights of log popularity, log co-occurrence and the two cosines (text, named items) maximise the likelihood of the
    fresh targets of validation among items not named yet; then a weight for copying (log of the copy score, for items
    named) maximises that of all targets. Both problems are convex.
    """

    def __init__(self, popularity: Popularity, cooccurrence: Cooccurrence, similarity: Similarity | None) -> None:
        """Takes fitted parts; without embeddings the mix does without the cosines."""
        self.popularity, self.cooccurrence, self.similarity = popularity, cooccurrence, similarity
        self.copy = Copy(cooccurrence.catalogue)
        self.weights: dict[str, float] = {}

    def _features(
        self,
        instances: Sequence[Instance],
        dialogues: Sequence[Dialogue],
        vectors: Mapping[str, np.ndarray] | None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        yield "popularity", np.log(self.popularity.probability_N)[None].astype(np.float32)
        yield "cooccurrence", np.log(self.cooccurrence.scores(instances, dialogues))
        if self.similarity is not None and vectors is not None:
            yield "text", np.asarray(vectors["text_BE"], np.float32) @ self.similarity.items_NE.T
            yield "named", np.asarray(vectors["named_BE"], np.float32) @ self.similarity.items_NE.T

    def _copy_features(self, instances: Sequence[Instance], dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
        copy_IN = self.copy.scores(instances, dialogues)
        named_IN = copy_IN > 0
        recency_IN = np.where(named_IN, np.log(np.where(named_IN, copy_IN, 1.0)), 0.0).astype(np.float32)
        return {"copy": named_IN.astype(np.float32), "copy-recency": recency_IN}

    def fit(
        self,
        instances: Sequence[Instance],
        dialogues: Sequence[Dialogue],
        vectors: Mapping[str, np.ndarray] | None = None,
        max_instances: int = 800,
        seed: int = 0,
    ) -> Mix:
        """Tunes the weights on validation, on at most `max_instances` of it, drawn at random."""
        if not instances:
            self.weights = {"popularity": 0.0, "cooccurrence": 1.0}
            return self
        if len(instances) > max_instances:
            kept = np.sort(np.random.default_rng([seed, 20_103]).choice(len(instances), max_instances, replace=False))
            instances = [instances[i] for i in kept]
            vectors = {name: x[kept] for name, x in vectors.items()} if vectors is not None else None
        pairs = make_pairs(instances, dialogues, self.copy.catalogue)
        features = dict(self._features(instances, dialogues, vectors))
        shape = (len(instances), len(self.copy.catalogue))
        open_IN = np.zeros(shape, np.float32)
        row, column = np.nonzero(pairs.named_IX >= 0)
        open_IN[row, pairs.named_IX[row, column]] = -np.inf
        fresh = pairs.select(pairs.fresh_P)
        self.weights = _fit_weights(features, open_IN, fresh) if len(fresh) else {"cooccurrence": 1.0}
        mixed_IN = np.zeros(shape, np.float32)
        for name, weight in self.weights.items():
            mixed_IN += np.float32(weight) * features[name]
        self.weights |= _fit_weights(self._copy_features(instances, dialogues), mixed_IN, pairs)
        return self

    def scores(
        self,
        instances: Sequence[Instance],
        dialogues: Sequence[Dialogue],
        vectors: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Unnormalised log-probabilities, float32 [I, N]. Give `vectors` if `fit` had them."""
        scores_IN = np.zeros((len(instances), len(self.copy.catalogue)), np.float32)
        for name, feature_IN in self._features(instances, dialogues, vectors):
            scores_IN += np.float32(self.weights.get(name, 0.0)) * feature_IN
        for name, feature_IN in self._copy_features(instances, dialogues).items():
            scores_IN += np.float32(self.weights.get(name, 0.0)) * feature_IN
        return scores_IN


def _fit_weights(features: Mapping[str, np.ndarray], base_IN: np.ndarray, pairs: Pairs) -> dict[str, float]:
    """Weights that maximise the mean log-likelihood of the targets under softmax(base + sum of weight x feature).

    A penalty of 0.5e-3 times the squared weights keeps them finite where a feature never varies.
    """
    names = list(features)
    count_I = np.bincount(pairs.instance_P, minlength=len(base_IN)).astype(np.float64)
    at_target = np.array(
        [
            np.broadcast_to(features[name], base_IN.shape)[pairs.instance_P, pairs.target_P].mean(dtype=np.float64)
            for name in names
        ]
    )
    used_I = count_I > 0
    base_UN, weight_U = base_IN[used_I], count_I[used_I] / count_I.sum()
    feature_UN = [f if len(f) == 1 and len(base_IN) != 1 else f[used_I] for f in features.values()]

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits_UN = base_UN.copy()
        for weight, f in zip(weights, feature_UN, strict=True):
            logits_UN += np.float32(weight) * f
        top_U = logits_UN.max(1)
        logits_UN -= top_U[:, None]
        p_UN = np.exp(logits_UN, out=logits_UN)
        total_U = p_UN.sum(1, dtype=np.float64)
        p_UN *= (weight_U / total_U)[:, None].astype(np.float32)
        expected = np.array([float(np.einsum("un,un->", p_UN, np.broadcast_to(f, p_UN.shape))) for f in feature_UN])
        loss = weight_U @ (top_U + np.log(total_U)) - weights @ at_target + 0.5e-3 * weights @ weights
        return float(loss), expected - at_target + 1e-3 * weights

    found = scipy.optimize.minimize(
        objective, np.zeros(len(names)), jac=True, method="L-BFGS-B", options={"maxiter": 50, "ftol": 1e-7}
    )
    return dict(zip(names, (float(w) for w in found.x), strict=True))


def _incidence(rows: Sequence[Sequence[int]], num_items: int) -> scipy.sparse.csr_matrix:
    """1 where the item stands in the row's list (each at most once), float64."""
    columns = [row for part in rows for row in part]
    starts = np.cumsum([0, *(len(part) for part in rows)])
    return scipy.sparse.csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), num_items))


@dataclasses.dataclass(frozen=True)
class Baselines:
    """All rows, fitted: `popularity`, `copy`, `similarity` (with embeddings), `cooccurrence`, `mix`."""

    popularity: Popularity
    copy: Copy
    similarity: Similarity | None
    cooccurrence: Cooccurrence
    mix: Mix

    @classmethod
    def fit(
        cls,
        train: Sequence[Dialogue],
        catalogue: Catalogue,
        validation: tuple[Sequence[Instance], Sequence[Dialogue], Mapping[str, np.ndarray] | None],
        items_NE: np.ndarray | None = None,
    ) -> Baselines:
        """Fits on `train`, tunes the mix on `validation` = (instances, dialogues, vectors or None)."""
        popularity, cooccurrence = Popularity(train, catalogue), Cooccurrence(train, catalogue)
        similarity = Similarity(items_NE) if items_NE is not None else None
        mix = Mix(popularity, cooccurrence, similarity).fit(*validation)
        return cls(popularity, Copy(catalogue), similarity, cooccurrence, mix)

    def rows(
        self,
        instances: Sequence[Instance],
        dialogues: Sequence[Dialogue],
        vectors: Mapping[str, np.ndarray] | None = None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(row, scores [I, N]) one at a time: on ReDial each array takes 116 MB."""
        yield "popularity", self.popularity.scores(instances, dialogues)
        yield "copy", self.copy.scores(instances, dialogues)
        if self.similarity is not None and vectors is not None:
            yield "similarity", self.similarity.scores(vectors)
        yield "cooccurrence", self.cooccurrence.scores(instances, dialogues)
        yield "mix", self.mix.scores(instances, dialogues, vectors)
