"""The method computes what it did at commit 1028781, from the same arrays (`program.py`).

On the record's processor all was equal to 1e-6. Elsewhere figures are equal to 1e-5, and of parameters the update as a
whole is compared, to 1 % of its length: a first step of Adam divides each gradient by its own size, and of some entries
(biases of keys, items of few contexts) the gradient is rounding alone.
"""

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


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    before = {name.replace("/before/", "/params/"): a for name, a in found.items() if "/before/" in name}
    assert {name for name in found if "/before/" not in name} == wanted.keys()
    for name, array in wanted.items():
        array = array.astype(np.float64)
        if name in before:
            apart, moved = (np.linalg.norm(array - other) for other in (found[name], before[name]))
            bound, part = 0.01 * moved + 1e-6 * array.size**0.5, apart / max(moved, 1e-12)
            assert apart <= bound, f"{name}: {part:.2g} of the update"
            continue
        scale = max(float(np.abs(np.nan_to_num(array)).max(initial=0.0)), 1.0)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 * scale, err_msg=name)


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
        found = program.summarised(found)
    same(found, expected(baseline, f"iteration/{variant}/"))


def test_a_changed_number_is_noticed(baseline, tmp_path):
    wanted = expected(baseline, "forward")
    name = "forward/logp"
    with pytest.raises(AssertionError, match=name):
        same({**wanted, name: wanted[name] * (1 + 3e-5)}, wanted)


def test_a_changed_update_is_noticed():
    rng = np.random.default_rng(0)
    before, step = rng.normal(size=(2, 50, 4))
    wanted = {"sft_step/params/words": before + 1e-3 * step}
    same({"sft_step/before/words": before, "sft_step/params/words": before + 1.005e-3 * step}, wanted)
    with pytest.raises(AssertionError, match=r"sft_step/params/words: 0\.02 of the update"):
        same({"sft_step/before/words": before, "sft_step/params/words": before + 1.02e-3 * step}, wanted)
