"""Validation and derived sizes."""

import inspect
import re

import pytest

from configs import common, quickstart
from crs_jax.config import derive, fields, stages, validate
from crs_jax.runtime.errors import InputError


def changed(**settings):
    config = common.get_config()
    for path, value in settings.items():
        group, _, name = path.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    return config


def test_defaults_are_valid():
    validate(common.get_config())


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("stages", "ppo,sft", "sft,ppo"),
        ("stages", "sft,sft", "write sft"),
        ("stages", "", "at least one"),
        ("data__dataset", "netflix", "opendialkg"),
        ("data__dataset", "redial", "--config.data.dir"),
        ("data__domain", "music", "books"),
        ("data__pipeline", "torch", "numpy, tftext"),
        ("data__window", 0, "at least 1"),
        ("data__reply_tokens", 6, "at least 7"),
        ("data__context_tokens", 500, "--config.model.positions=512"),
        ("sft__row_tokens", 513, "--config.model.positions=512"),
        ("sft__learning_rate", 0.0, "at least 1e-12"),
        ("sft__learning_rate", float("nan"), "finite"),
        ("sft__learning_rate", 1e39, "between 1e-12 and 1"),  # an infinity in float32
        ("ppo__temperature", 1e-6, "at least 0.05"),
        ("seed", 2**64, "between 0 and 4294967295"),
        ("model__leave_out", ("text", "genre"), "none of text, asked, named, near, people"),
        ("model__heads", 5, "--config.model.width=192"),
        ("model__decoder", "llama", "must be one of gpt2"),
        ("model__value", "none", "shared, detached, separate"),
        ("model__dtype", "float16", "bfloat16"),
        ("model__dropout", 1.0, "between 0 and 0.95"),
        ("model__init", "openai-community/gpt2", "--config.tokenizer.kind"),
        ("model__init", "/no/such/folder", "no such folder"),
        ("model__transfer", "runs/movies", "--config.stages=evaluate"),
        ("ppo__minibatches", 3, "ppo.contexts=32"),
        ("ppo__clip", 1.0, "between 1e-06 and 0.999"),
        ("ppo__gae_lambda", 1.5, "between 0 and 1"),
        ("ppo__decay_to", 1.5, "between 0 and 1"),
        ("ppo__value_warmup", -1, "at least 0"),
        ("ppo__value_warmup", 100, "must be 0 without a value function"),
        ("reward__ensemble", 0, "at least 1"),
        ("reward__spread", -0.1, "at least 0"),
        ("reward__spread", 0.5, "one reward model has no spread: give --config.reward.ensemble=2 or more"),
        ("evaluation__ks", (5, 1), "rising"),
        ("evaluation__ks", (), "cut-offs"),
        ("mesh__data", 0, "-1"),
    ],
)
def test_names_the_flag(path, value, says):
    config = changed(**{path: value})
    with pytest.raises(InputError) as caught:
        validate(config)
    message = str(caught.value)
    assert says in message
    assert "--config." + path.replace("__", ".") in message or says.startswith("--config")
    assert "\n" not in message


@pytest.mark.parametrize("init", ["gpt2", "openai-community/gpt2", "owner/name@607a30d", "owner/name@v1.0"])
def test_a_checkpoint_of_the_hub_can_be_named(init):
    """With its revision too, which one that has no short name needs (`models/hf.py`)."""
    validate(changed(model__init=init, tokenizer__kind="gpt2"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"ppo__learning_rate": 0.01, "ppo__value_rate": 110.0},
            "--config.ppo.value_rate=110.0: .* of 1.1, above 1",
        ),
        ({"sft__learning_rate": 0.1, "sft__new_rate": 9.0, "sft__query_rate": 2.0}, "--config.sft.query_rate=2.0"),
    ],
)
def test_a_rate_above_one_is_refused_also_as_a_product(settings, says):
    with pytest.raises(InputError, match=says):
        validate(changed(**settings))


def test_all_rewards_zero_is_refused_only_with_ppo():
    config = changed(reward__alpha=0.0, reward__beta=0.0, reward__gamma=0.0)
    with pytest.raises(InputError, match=r"reward\.alpha"):
        validate(config)
    config.stages = "sft,evaluate"
    validate(config)


def test_value_warmup_needs_a_value_function():
    validate(changed(ppo__value_warmup=5, ppo__group_baseline=False, ppo__iterations=0))  # the SFT policy as it is
    for without in ({"algorithm": "rloo", "ppo__group_baseline": False}, {"algorithm": "ppo"}):
        with pytest.raises(InputError, match=r"ppo\.value_warmup=5: must be 0 without a value function"):
            validate(changed(ppo__value_warmup=5, **without))


def test_what_needs_a_value_function_and_what_a_group():
    with pytest.raises(InputError, match=r"ppo\.turns=2: must be 1 with --config\.ppo\.group_baseline=true"):
        validate(changed(ppo__turns=2))
    validate(changed(ppo__turns=2, ppo__group_baseline=False))
    with pytest.raises(InputError, match=r"ppo\.group=1: must be at least 2 for --config\.ppo\.group_baseline=true"):
        derive(changed(ppo__group=1), 1)
    derive(changed(ppo__group=1, ppo__group_baseline=False), 1)


def test_folder_must_exist(tmp_path):
    validate(changed(data__dataset="redial", data__dir=str(tmp_path)))
    with pytest.raises(InputError, match="no such folder"):
        validate(changed(data__dataset="redial", data__dir=str(tmp_path / "missing")))


def test_missing_setting_is_named():
    config = common.get_config()
    del config.ppo["clip"]
    with pytest.raises(InputError, match=r"ppo\.clip is missing"):
        validate(config)


def test_stages_ignores_spaces():
    assert stages(changed(stages="sft, ppo ,evaluate")) == ("sft", "ppo", "evaluate")


def test_fields_are_flat():
    config = common.get_config()
    names = dict(fields(config))
    assert names["ppo.clip"] == config.ppo.clip
    assert names["seed"] == config.seed
    assert "ppo" not in names
    # every `name=Kind(default, ...)` line of the file that is not a group
    assert len(names) == len(re.findall(r"^ +\w+=(?!Group)[A-Z]\w+\(", inspect.getsource(common), re.MULTILINE))


def test_derived_sizes_by_hand():
    config = changed(ppo__contexts=16, ppo__group=4, ppo__minibatches=4, ppo__epochs=3, mesh__fsdp=2, mesh__tensor=2)
    sizes = derive(config, 8)
    assert sizes["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sizes["shards"] == 4
    assert sizes["replies"] == 64
    assert sizes["replies_per_shard"] == 16
    assert sizes["contexts_per_shard"] == 4
    assert sizes["minibatch_replies"] == 16
    assert sizes["minibatch_replies_per_shard"] == 4
    assert sizes["updates_per_iteration"] == 12
    assert sizes["sft_rows_per_shard"] == 4
    assert sizes["sft_tokens_per_step"] == 16 * 256
    assert sizes["reply_row_tokens"] == 160 + 48


def test_a_group_of_one_has_no_others():
    with pytest.raises(InputError, match=r"ppo\.group=1.*at least 2 for --config\.algorithm=rloo"):
        derive(changed(algorithm="rloo", ppo__group=1), 1)
    derive(changed(algorithm="rankwise", ppo__group=1, ppo__group_baseline=False), 1)


def test_lists_are_drawn_from_enough_acts():
    with pytest.raises(InputError, match=r"ppo\.all_acts=4.*at least --config\.ppo\.list_items=5"):
        derive(changed(algorithm="rankwise", ppo__all_acts=4), 1)
    derive(changed(algorithm="rankwise", ppo__all_acts=5), 1)
    derive(changed(algorithm="ppo", ppo__all_acts=4), 1)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_quickstart_fits_up_to_eight_devices(devices):
    assert derive(quickstart.get_config(), devices)["mesh"]["data"] == devices


@pytest.mark.parametrize(
    ("settings", "devices", "flag"),
    [
        ({"mesh__fsdp": 3}, 4, "--config.mesh.fsdp=3"),
        ({"mesh__tensor": 3}, 4, "--config.mesh.tensor=3"),
        ({"mesh__data": 2}, 4, "--config.mesh.data=2"),
        ({"mesh__tensor": 8}, 8, "--config.model.heads=4"),
        ({"sft__rows": 6}, 4, "--config.sft.rows=6"),
        ({"sft__accumulate": 3}, 1, "--config.sft.accumulate=3"),
        ({"sft__accumulate": 8}, 4, "--config.sft.accumulate=8"),
        ({"reward__accumulate": 3}, 1, "--config.reward.accumulate=3"),
        ({"ppo__accumulate": 16}, 1, "--config.ppo.accumulate=16"),
        ({"ppo__contexts": 6}, 4, "--config.ppo.contexts=6"),
        ({"ppo__minibatches": 16, "ppo__contexts": 16}, 8, "--config.ppo.minibatches=16"),
    ],
)
def test_mesh_that_does_not_fit(settings, devices, flag):
    with pytest.raises(InputError) as caught:
        derive(changed(**settings), devices)
    assert str(caught.value).startswith(flag + ":")
