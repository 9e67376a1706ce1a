"""How cells are written and chosen."""

import pytest

from crs_jax.runtime.errors import InputError
from crs_jax.tools.benchmark import plan
from crs_jax.tools.benchmark.plan import Cell, named, parse, product
from crs_jax.tools.benchmark.program import cells_of, read
from crs_jax.tools.benchmark.worker import Order, config_of


@pytest.mark.parametrize("name", ["small", "cpu", "gpu"])
def test_every_planned_cell_has_a_config(name):
    """Batches divide, and contexts with replies fit the positions."""
    cells = named(name, torch=True)
    assert len(set(cells)) == len(cells)
    for cell in cells:
        assert parse(str(cell)) == cell
        config = config_of(Order((str(cell),), "configs/benchmark.py"), cell, half=True)
        assert config.model.dtype == "bfloat16"
    assert {cell.part for cell in cells} >= set(plan.PARTS)
    assert not any(cell.torch for cell in named(name, torch=False))


def test_a_cell_sets_its_shapes():
    cell = parse("update:345m:64x1:192+64:model.remat=false,ppo.all_acts=8")
    config = config_of(Order((str(cell),), "configs/benchmark.py", ("--config.seed=3",)), cell, half=False)
    assert (config.ppo.contexts, config.ppo.group, config.ppo.minibatches) == (64, 1, 1)
    assert (config.data.context_tokens, config.data.reply_tokens) == (192, 64)
    assert (config.model.layers, config.model.remat, config.model.dtype) == (24, False, "float32")
    assert (config.ppo.all_acts, config.seed) == (8, 3)
    sft = config_of(Order((), "configs/benchmark.py"), parse("torch-sft:16m:4x64"), half=False)
    assert (sft.sft.rows, sft.sft.row_tokens) == (4, 64)


@pytest.mark.parametrize(
    "text", ["rollout", "warp:16m", "rollout:16m:16", "rollout:16m:16x1:32", "sft:16m:1x1:1+1:a:b"]
)
def test_what_is_no_cell(text):
    with pytest.raises(InputError):
        parse(text)


def test_flags_choose_cells():
    cells = product(["rollout", "sft", "torch"], ["16m"], ["4x1", "8x1"], ["32+32"])
    assert [str(c) for c in cells] == [
        "rollout:16m:4x1:32+32", "rollout:16m:8x1:32+32", "sft:16m",
        "torch-rollout:16m:4x1:32+32", "torch-rollout:16m:8x1:32+32", "torch-sft:16m",
    ]  # fmt: skip
    given, overrides = read(["--cells=sft:tiny rollout:tiny", "--config.seed=1", "--budget=5"])
    assert cells_of(given) == [Cell("sft", "tiny"), Cell("rollout", "tiny")]
    assert overrides == ["--config.seed=1"]


@pytest.mark.parametrize("flag", ["--speed=1", "--budget=soon", "tiny", "--plan=all"])
def test_what_is_no_flag(flag):
    with pytest.raises(InputError):
        read([flag])
