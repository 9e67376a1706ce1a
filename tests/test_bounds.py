"""Bounds of numbers: every one has both, each end is accepted and works, and what lies just beyond is refused."""

import math

import jax
import numpy as np
import pytest
import torch

from configs import common
from crs_jax.config import fields, validate
from crs_jax.runtime.errors import InputError
from crs_jax.settings import Number
from crs_jax.training.optimizer import schedule

NUMBERS = {path: value for path, value in fields(common.get_config()) if type(value) in (int, float)}
DECLARED = {path: setting for path, setting in common.settings().flat().items() if isinstance(setting, Number)}
BOUNDS = {path: number.bounds for path, number in DECLARED.items()}


def with_value(path, value):
    config = common.get_config()
    group, _, name = path.rpartition(".")
    at = config
    for key in filter(None, group.split(".")):
        at = at[key]
    with at.ignore_type():
        at[name] = value
    return config


def refusal(path, value) -> str:
    """What `validate` says; nothing where the value can be used."""
    try:
        validate(with_value(path, value))
    except InputError as error:
        return str(error)
    return ""


def beyond(path) -> tuple:
    low, high = BOUNDS[path]
    if isinstance(low, int):
        return low - 1, high + 1
    return math.nextafter(low, -math.inf), math.nextafter(high, math.inf)


def test_every_number_has_bounds_of_its_own_kind():
    assert set(BOUNDS) == set(NUMBERS)
    for path, (low, high) in BOUNDS.items():
        assert type(low) is type(high) is type(NUMBERS[path]), path
        assert low < high, path
        assert low <= NUMBERS[path] <= high, path


@pytest.mark.parametrize("path", sorted(NUMBERS))
def test_both_ends_are_accepted_and_no_more(path):
    """At an end another setting may have to go along: that is all that may be said, and it names both."""
    low, high = BOUNDS[path]
    for end in (low, high):
        assert DECLARED[path].refusal(end) == ""
        said = refusal(path, end)
        assert not said or said.count("--config.") > 1, said
    below, above = (refusal(path, value) for value in beyond(path))
    assert below == f"--config.{path}={beyond(path)[0]!r}: must be at least {low:{'d' if type(low) is int else 'g'}}"
    assert above.startswith(f"--config.{path}={beyond(path)[1]!r}: must lie between ")
    assert float(above.rpartition(" and ")[2]) == high


@pytest.mark.parametrize("path", sorted(NUMBERS))
def test_what_is_no_usable_number_is_refused_by_name(path):
    kind = "whole" if isinstance(NUMBERS[path], int) else "finite"
    for value in (math.nan, math.inf, -math.inf):
        assert refusal(path, value) == f"--config.{path}={value}: must be a {kind} number"
    for huge in (10**39, -(10**50)):
        value = huge if kind == "whole" else float(huge)
        assert refusal(path, value).startswith(f"--config.{path}={value}: must ")
    for value in (True, False, "1", None, 1j):  # a ConfigDict turns some of them into floats by itself
        assert DECLARED[path].refusal(value) == f"must be a {'whole number' if kind == 'whole' else 'number'}"


def test_numbers_of_numpy_are_numbers():
    assert refusal("seed", np.int64(3)) == ""
    assert refusal("ppo.clip", np.float32(0.1)) == ""
    assert "must lie between" in refusal("ppo.clip", np.float32("nan"))


def test_greedy_or_a_temperature_that_float32_can_take():
    assert refusal("evaluation.temperature", 0.0) == refusal("evaluation.temperature", 0.05) == ""
    message = "--config.evaluation.temperature=0.049: must be 0 (greedy) or at least 0.05"
    assert refusal("evaluation.temperature", 0.049) == message


@pytest.mark.parametrize("seed", BOUNDS["seed"])
def test_a_seed_works_wherever_it_goes(seed):
    """Alone, beside a number, and with one added, as the stages use it; and no two seeds are one."""
    for number in (seed, seed + 31):
        assert np.isfinite(np.asarray(jax.random.normal(jax.random.key(number)))).all()
    np.random.default_rng(seed)
    np.random.default_rng([seed, 13])
    torch.manual_seed(seed)
    other = jax.random.key_data(jax.random.key(1))
    assert (jax.random.key_data(jax.random.key(seed)) != other).any()


def test_a_seed_beyond_is_another_seeds_key():
    """Why the bound is where it is: above it JAX drops bits, so that two seeds would start from one model."""
    beyond_it = BOUNDS["seed"][1] + 1
    assert (jax.random.key_data(jax.random.key(beyond_it)) == jax.random.key_data(jax.random.key(0))).all()


@pytest.mark.parametrize("rate", BOUNDS["ppo.learning_rate"])
def test_rates_stay_finite_and_above_zero_in_float32(rate):
    """Multiplied by the largest multiple that a parameter group may have, too."""
    values = np.array([schedule(rate, 0.05, 1000)(step) for step in (0, 1, 49, 50, 500, 1000)], np.float32)
    values = np.concatenate([values, values * np.float32(BOUNDS["ppo.query_rate"][1])])
    assert np.isfinite(values).all()
    assert (values > 0).all()
