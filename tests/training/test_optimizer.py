"""The rate and weight decay of every parameter of every stage, against a list written by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import make_layout, make_policy

from configs import common
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.rl.reward import RewardModel
from crs_jax.runtime.sharding import path_name
from crs_jax.training import optimizer
from crs_jax.training.act_head import make_head_optimizer, trained_part

BLOCK_MATRICES = ["qkv_kernel", "out_kernel", "up_kernel", "down_kernel"]
BLOCK_VECTORS = ["ln1_scale", "ln1_bias", "ln2_scale", "ln2_bias", "qkv_bias", "out_bias", "up_bias", "down_bias"]
PRETRAINED = {
    "decayed": ["words", *(f"trunk/blocks/{name}" for name in BLOCK_MATRICES)],
    "plain": [
        "trunk/positions", "trunk/final_scale", "trunk/final_bias", *(f"trunk/blocks/{name}" for name in BLOCK_VECTORS),
    ],
}  # fmt: skip
NEW = {
    "decayed": ["controls", "items/projection", "decisions/kernel"],
    "plain": ["decisions/end_bias", "decisions/own_bias"],
    "items": ["items/residual"],
}
SLATE = {
    "decayed": ["decisions/state_kernel", "query/hidden_kernel"],
    "plain": ["decisions/say_bias"],
    "items": ["items/bias"],
}
QUERY = {
    "decayed": [
        *(f"query/{name}_kernel" for name in ("text", "asked", "match", "named", "attention")), "query/role_scale",
    ],
    "plain": ["query/asked_match", "query/named_match"],
    "gains": [f"query/{name}" for name in ("gain", "gate", "named_gain", "attention_bias", "attention_age")],
}  # fmt: skip
RATE, DECAY, ITEM_DECAY = 0.01, 0.25, 0.75


def config():
    c = common.get_config()
    for stage in (c.sft, c.reward, c.ppo, c.head):
        stage.learning_rate, stage.weight_decay = RATE, DECAY
    c.sft.item_decay = ITEM_DECAY
    c.sft.new_rate, c.sft.query_rate, c.reward.new_rate, c.ppo.query_rate, c.ppo.value_rate = 10.0, 0.3, 20.0, 5.0, 50.0
    c.ppo.slate_rate, c.head.gain_rate = 2.0, 0.04
    return c


def expected(stage, heads=()):
    """{name: (rate, decay)} of the policy's parameters in a stage, and of its heads."""
    new, slate, query, items = {
        "sft": (10.0, 10.0, 3.0, ITEM_DECAY), "reward": (20.0, 20.0, 20.0, DECAY), "ppo": (1.0, 2.0, 5.0, DECAY),
    }[stage]  # fmt: skip
    out = {}
    for names, multiple in ((PRETRAINED, 1.0), (NEW, new), (SLATE, slate), (QUERY, query)):
        for kind, members in names.items():
            decay = {"decayed": DECAY, "items": items}.get(kind, 0.0)
            out |= dict.fromkeys(members, (multiple * RATE, decay))
    prefix = "" if stage == "sft" else "policy/"
    return {prefix + name: value for name, value in out.items()} | dict(heads)


def arrays(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def measured(adam, params, steps):
    """{name: (rate, decay)}: along a steady gradient Adam moves by the rate, without one weight decay alone does."""
    params, moved = jax.tree.map(np.ones_like, params), []
    update = jax.jit(adam.update)
    for gradient in (1e-3, 0.0):
        grads, state = jax.tree.map(lambda a, g=gradient: np.full_like(a, g), params), jax.jit(adam.init)(params)
        for _ in range(steps):
            updates, state = update(grads, state, params)
        moved.append(updates)
    along, still = moved
    found = {}
    for (path, a), (_, s) in zip(*(jax.tree_util.tree_leaves_with_path(u) for u in (along, still)), strict=True):
        rate = float(np.mean(s - a))
        found[path_name(path)] = rate, float(np.mean(-s)) / rate
    return found


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, (rate, decay) in wanted.items():
        assert found[name] == pytest.approx((rate, decay), rel=1e-3, abs=1e-6), name


@pytest.fixture(scope="module")
def policy():
    return make_policy(0, make_layout(), layers=1)


def test_every_parameter_of_sft(policy):
    adam = optimizer.make_optimizer(optimizer.sft_rates(config()), 0.0, 10, 1e9)  # the rate is highest at step 1
    same(measured(adam, arrays(policy), 2), expected("sft"))


def test_every_parameter_of_the_reward_model(policy):
    heads = {"heads/kernel": (0.2, DECAY), "heads/feature_kernel": (0.2, DECAY), "heads/bias": (0.2, 0.0)}
    adam = optimizer.make_optimizer(optimizer.reward_rates(config()), 0.0, 10, 1e9)
    same(measured(adam, arrays(RewardModel(policy)), 2), expected("reward", heads))


def test_every_parameter_of_ppo(policy):
    heads = {"head/kernel": (0.5, DECAY), "head/bias": (0.5, 0.0)}
    adam = optimizer.make_optimizer(optimizer.ppo_rates(config()), 0.0, 10, 1e9)
    wanted = expected("ppo", heads)
    of_policy = {name: value for name, value in wanted.items() if name not in heads}
    wanted |= {name.replace("policy/", "critic/"): value for name, value in of_policy.items()}
    critic = make_policy(1, make_layout(), layers=1)
    same(measured(adam, arrays(ActorCritic(policy, "separate", critic)), 2), wanted)


def test_every_parameter_of_the_head(policy):
    """Items' biases and matrices decay; an attention's bias is no item's."""
    wanted = dict.fromkeys(("items/bias", *QUERY["decayed"], "query/hidden_kernel"), (RATE, DECAY))
    wanted |= dict.fromkeys(QUERY["plain"], (RATE, 0.0)) | dict.fromkeys(QUERY["gains"], (0.04, 0.0))
    found = measured(make_head_optimizer(config().head, 100_000), trained_part(arrays(policy)), 21)
    found = {name if "/" in name else f"items/{name}": value for name, value in found.items()}
    assert found["query/attention_bias"][1] == pytest.approx(0.0, abs=1e-6)
    same(found, wanted)


def test_a_parameter_without_a_rule_is_no_parameter():
    adam = optimizer.make_optimizer(optimizer.Rates(1.0), 0.0, 10, 1.0)
    params = {"items": {"another_bias": jnp.ones(2)}}
    with pytest.raises(KeyError, match="items/another_bias"):
        adam.update(params, adam.init(params), params)


def test_the_table_says_what_is_used(policy, capsys):
    optimizer.sft_rates(config()).show("sft", arrays(policy))
    lines = capsys.readouterr().out.splitlines()
    for name, rate, decay in (
        ("controls", "1.0e-01", "0.25"), ("items: bias, residual", "1.0e-01", "0.75"), ("words", "1.0e-02", "0.25"),
        ("query: asked_match, attention_age", "3.0e-02", "0"), ("trunk/blocks: down_bias", "1.0e-02", "0"),
    ):  # fmt: skip
        row = [line for line in lines if line.startswith(name)]
        assert any(line.split()[-2:] == [rate, decay] for line in row), (name, lines)
    assert max(map(len, lines)) <= 80
    optimizer.sft_rates(common.get_config()).show("sft", arrays(policy))  # where all rates are alike
    shown = set(re.split(r"[\s,:]+", capsys.readouterr().out))
    for path, _ in jax.tree_util.tree_leaves_with_path(arrays(policy)):
        assert path_name(path).rpartition("/")[2] in shown
