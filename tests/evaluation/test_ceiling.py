"""The noise ceiling: planted shares of chance, a predictor that reaches it, and what is said where none is known."""

import dataclasses

import numpy as np
import pytest
from tiny_task import make_task, tiny_config

from crs_jax.evaluation import ceiling
from crs_jax.evaluation.ceiling import DRAWS, KNOWN, NONE, noise_ceiling, repeated
from crs_jax.inputs.labels import label
from crs_jax.signals.registry import column


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    config = tiny_config(cache, simulator__train_dialogues=250, data__validation_dialogues=120)
    return make_task(tmp_path_factory.mktemp("ceiling"), config)


def test_ceiling_is_the_correlation_of_the_expectation(task, monkeypatch):
    rng = np.random.default_rng(0)
    mean_P, group_P = rng.normal(size=3000), np.repeat(np.arange(600), 5)
    value_PJ = mean_P[:, None] + 1.5 * rng.normal(size=(3000, 1 + DRAWS))
    reached = np.corrcoef(mean_P, value_PJ[:, 0])[0, 1]
    value_PJ[::7, 0], value_PJ[3::11, 2] = np.nan, np.nan
    monkeypatch.setattr(ceiling, "repeated", lambda task, split: ({"engagement": value_PJ}, group_P))
    found = noise_ceiling(task, "validation")["engagement"]
    assert found["ceiling"] == pytest.approx(np.sqrt(1 / 3.25), abs=0.02)
    assert found["ceiling"] == pytest.approx(reached, abs=0.03)
    assert found["ceiling-low"] < found["ceiling"] < found["ceiling-high"] < found["ceiling-low"] + 0.06


def test_repeated_reactions_of_the_simulator(task):
    values, group_P = repeated(task, "validation")
    where = task.replies("validation")
    observed_PS = np.array([label(task, "validation").signal_DTS[at] for at in where])
    assert group_P.tolist() == [d for d, _ in where]
    for name, value_PJ in values.items():
        known_P = np.isfinite(value_PJ[:, 0])
        column_P = observed_PS[:, column(name)]
        np.testing.assert_array_equal(known_P, np.isfinite(column_P))
        assert np.corrcoef(column_P[known_P], value_PJ[known_P, 0])[0, 1] == pytest.approx(1, abs=1e-6)
    # After a goodbye nothing can follow; after anything else something else could.
    turns = [task.corpus.validation[d].turns for d, _ in where]
    end_P = np.array([len(some) - 1 == t and not some[t].items for some, (_, t) in zip(turns, where, strict=True)])
    spread_P = np.ptp(values["engagement"], axis=1)
    assert end_P.sum() > 20
    assert (spread_P[end_P] == 0).all()
    assert (spread_P[~end_P & np.isfinite(spread_P)] > 0).mean() > 0.98  # five answers can be alike


def test_the_mean_of_other_reactions_comes_as_near_as_the_ceiling_says(task):
    """Of J draws with reliability r the mean correlates with another draw by r sqrt(J / (1 + (J - 1) r))."""
    found, (values, _) = noise_ceiling(task, "validation"), repeated(task, "validation")
    for name, value_PJ in values.items():
        value_PJ = value_PJ[np.isfinite(value_PJ).all(1)]
        r = found[name]["ceiling"] ** 2
        expected = r * np.sqrt(DRAWS / (1 + (DRAWS - 1) * r))
        assert np.corrcoef(value_PJ[:, 0], value_PJ[:, 1:].mean(1))[0, 1] == pytest.approx(expected, abs=0.08), name
        assert expected < found[name]["ceiling"] < 1


def test_what_is_said_where_no_ceiling_is_known(task, tmp_path):
    real = dataclasses.replace(task, corpus=dataclasses.replace(task.corpus, name="redial"))
    with_log = dataclasses.replace(task, config=tiny_config(tmp_path, signals__log="dwell.csv"))
    for some in (real, with_log):
        found = noise_ceiling(some, "validation")
        assert found == {
            "engagement": {"ceiling-from": NONE},
            "relevance": {"ceiling": 1.0, "ceiling-from": KNOWN},
            "sentiment": {"ceiling-from": NONE},
        }
