"""The method computes what it did at commit 1028781, from the same arrays (`runtime/program.py`)."""

import pathlib

import numpy as np
import program
import pytest


@pytest.fixture(scope="module")
def baseline() -> dict[str, np.ndarray]:
    return dict(np.load(program.BASELINE))


def expected(baseline: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    found = {name.removeprefix("out/"): a for name, a in baseline.items() if name.startswith(f"out/{prefix}")}
    for old, new in program.RENAMED.items():
        found = {name.replace(old, new): a for name, a in found.items()}
    return found


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        scale = max(float(np.abs(np.nan_to_num(array.astype(np.float64))).max(initial=0.0)), 1.0)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


def test_forward_pass_and_ranking(baseline, tmp_path):
    found = program.forward(baseline, tmp_path)
    same(found, expected(baseline, "forward") | expected(baseline, "ranking"))


def test_one_step_of_sft_and_of_the_reward_model(baseline, tmp_path):
    same(program.supervised(baseline, tmp_path), expected(baseline, "sft_step") | expected(baseline, "reward_step"))


VARIANTS = list(program.VARIANTS)


@pytest.mark.parametrize("variant", [VARIANTS[0], *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS[1:])])
def test_one_iteration_of_ppo(baseline, tmp_path: pathlib.Path, variant):
    found = program.iteration(baseline, tmp_path, variant)
    if variant != VARIANTS[0]:
        found = {name: program.summary(name, a) if "/params/" in name else a for name, a in found.items()}
    same(found, expected(baseline, f"iteration/{variant}/"))


def test_a_changed_number_is_noticed(baseline, tmp_path):
    wanted = expected(baseline, "forward")
    name = "forward/logp"
    with pytest.raises(AssertionError, match=name):
        same({**wanted, name: wanted[name] * (1 + 1e-5)}, wanted)
