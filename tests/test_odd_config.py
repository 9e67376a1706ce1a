"""Odd settings by the thousand: each command line is a config that fits, or one error naming a flag."""

import random
import re

import pytest
from absl import flags

from configs import common
from crs_jax.config import derive, fields
from crs_jax.flags import parse
from crs_jax.runtime.errors import InputError

LINES = 1500
ODD = (
    "", "0", "-1", "1", "3", "1.5", "-0.5", "1e400", "nan", "inf", "-inf", "none", "None", "True", "maybe", "()",
    "(1,2", "('a',)", "[1, 2]", "{}", "1" * 50, "1" * 5000, "x" * 5000, "../..", "/dev/null", "<|end|>", "a\nb",
    "\x1b[31m", "\u202e🎬", "@11", "ppo,sft", "scratch", "1,2,3", "__import__('os')", "%s", "=",
)  # fmt: skip


@pytest.fixture(scope="module")
def settings():
    return dict(fields(common.get_config()))


def odd(value, rng: random.Random) -> str:
    """Another value for a setting: of its own kind, or of none."""
    if rng.random() < 0.4 or isinstance(value, str | tuple):
        return rng.choice(ODD)
    if isinstance(value, bool):
        return str(rng.choice((True, False)))
    if isinstance(value, int):
        return str(rng.choice((value + 1, value - 1, value * 2, value // 2, -value, 0, 10**9, 2**31, 2**64, 10**30)))
    return repr(rng.choice((value / 2, value * 3, -value, 0.0, 1.0, 1e-6, 1e30, 1e39, 5e-324, float("nan"))))


@pytest.mark.filterwarnings("ignore:the load_module")
def test_a_command_line_is_a_config_that_fits_or_one_clear_error(settings):
    rng, accepted, told = random.Random(0), 0, set()
    for _ in range(LINES):
        names = rng.sample(sorted(settings), rng.randint(1, 3))
        given = {name: odd(settings[name], rng) for name in names}
        argv = ["main", "--config=configs/common.py", *(f"--config.{name}={value}" for name, value in given.items())]
        try:
            config = parse(argv, flags.FlagValues()).config
            sizes = derive(config, 4)
        except InputError as error:
            message = str(error)
            assert any(name in message for name in names), (given, message)
            assert "Traceback" not in message
            assert len(message) < 700, message
            told.add(re.sub(r"'.*?'|[\d.e+-]+", "", message)[:80])
        else:
            accepted += 1
            assert sizes["replies"] == config.ppo.contexts * config.ppo.group > 0
            for name, value in fields(config):  # what was not asked for is as it was
                assert name in given or value == settings[name]
    assert LINES * 0.1 < accepted < LINES * 0.9
    assert len(told) > 40


@pytest.mark.parametrize("name", ["seed", "ppo.temperature", "ppo.learning_rate", "head.gain_rate", "model.layers"])
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_number_beyond_its_bounds_is_told_on_the_command_line(settings, name, end):
    """As people type it: one line with the flag, what was given and the bound."""
    low, high = common.settings().flat()[name].bounds
    value = {"low": low - 1 if isinstance(low, int) else low / 2, "high": 2 * high}[end]
    with pytest.raises(InputError) as caught:
        parse(["main", "--config=configs/common.py", f"--config.{name}={value}"], flags.FlagValues())
    low, high = (str(bound) if isinstance(bound, int) else f"{bound:g}" for bound in (low, high))
    bound = {"low": f"must be at least {low}", "high": f"must lie between {low} and {high}"}[end]
    assert str(caught.value) == f"--config.{name}={value}: {bound}"
