"""Growth in tokens and depth against compile time, on records by hand."""

import pytest

from crs_jax.tools.benchmark.findings import depth, growth, sentences


def cell(part="iteration", tokens=1024, seconds=1.0, layers=4, compiled=10.0, **more):
    shape = {"layers": layers, "width": 256, "heads": 4, "remat": False, "dtype": "float32"}
    fields = {
        "size": "16m",
        "group": 1,
        "contexts": 16,
        "lengths": [32, 32],
        "model": shape,
        "minibatches": 4,
        "epochs": 4,
    }
    return {"part": part, "tokens": tokens, "seconds": seconds, "compile_seconds": compiled, **fields, **more}


def test_linear_and_quadratic_time():
    linear = [cell(tokens=n, seconds=n / 500) for n in (1000, 2000, 8000)]
    assert growth(linear)["iteration:16m, 4 layers, group 1"] == pytest.approx(
        {"exponent": 1, "cells": 3, "from": 1000, "to": 8000}
    )
    square = [cell("rollout", tokens=n, seconds=n * n) for n in (10, 20, 30)]
    assert growth(square)["rollout:16m, 4 layers, group 1"]["exponent"] == pytest.approx(2)


def test_what_is_not_alike_is_not_compared():
    """Another group, another depth or torch's own cells make no line, nor do two cells of as many tokens."""
    others = [cell(tokens=9, group=4), cell(tokens=9, layers=24), cell("torch-iteration", tokens=9), cell(seconds=2.0)]
    assert growth([cell(), *others]) == {}
    assert growth([cell("rollout"), cell("rollout", tokens=9, lengths=[64, 32])]) == {}
    assert depth([cell(), cell(layers=24, contexts=8), cell("update", layers=24)]) == {}


def test_depth_over_compile_time():
    found = depth([cell(layers=24, compiled=12.0), cell(compiled=10.0)])
    assert found["iteration:16m"] == {"layers": [4, 24], "ratio": pytest.approx(1.2)}
    assert sentences({"growth": {}, "depth": found}) == [
        "iteration:16m: 24 layers compile in 1.20 times the time of 4"
    ]  # fmt: skip
