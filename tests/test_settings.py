"""Kinds of settings: what each takes, what it says of anything else, and a group that a plugin has added to."""

import pytest

from crs_jax.settings import Choice, Choices, Cutoffs, Flag, Group, Number, Text

NAMES = {"one": 1}
FLAG, TEXT = Flag(True, "a flag"), Text("", "a text")
CHOICE, CHOICES = Choice("one", NAMES, "a choice"), Choices((), ("a", "b"), "some")
CUTOFFS, ALSO = Cutoffs((1, 5), "ranks"), Number(-1, 1, 8, "devices", also=(-1, "all"))
RISING = "must be cut-offs of at least 1 in rising order, such as '(1, 5)'"
WHOLE, SHARE = Number(3, 1, 8, "some"), Number(0.5, 0.0, 1.0, "a share")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (FLAG, False),
        (TEXT, "anything"),
        (CHOICE, "one"),
        (CHOICES, ()),
        (CHOICES, ("b", "a")),
        (CHOICES, ["a"]),
        (CUTOFFS, [1, 3]),
        (ALSO, -1),
        (ALSO, 8),
        (WHOLE, 1),
        (SHARE, 1),
        (SHARE, 0.0),
    ],
)
def test_takes(setting, value):
    assert setting.refusal(setting.default) == ""
    assert setting.refusal(value) == ""


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        (FLAG, 1, "must be true or false"),
        (TEXT, None, "must be text"),
        (TEXT, "a\0b", "must be text without zero bytes"),
        (CHOICE, 1, "must be text"),
        (CHOICE, "two", "must be one of one"),
        (CHOICES, "a", "must be a tuple"),
        (CHOICES, ("a", "c"), "'c' is none of a, b"),
        (CHOICES, ("a", {}), "{} is none of a, b"),
        (CUTOFFS, 1, "must be a tuple"),
        *((CUTOFFS, ks, RISING) for ks in ((), (0, 1), (2, 1), (1, 1), (1.0,), (True,))),
        (ALSO, 0, "must be -1 (all) or at least 1"),
        (ALSO, -2, "must be at least -1"),
        (ALSO, 9, "must lie between -1 and 8"),
        (WHOLE, 2.0, "must be a whole number"),
        (WHOLE, True, "must be a whole number"),
        (WHOLE, 0, "must be at least 1"),
        (SHARE, "1", "must be a number"),
        (SHARE, float("nan"), "must be a finite number"),
        (SHARE, 1.5, "must lie between 0 and 1"),
    ],
)  # fmt: skip
def test_refuses(setting, value, says):
    assert setting.refusal(value) == says


def test_help_says_what_a_setting_may_be():
    assert [setting.allowed for setting in (TEXT, CHOICE, CHOICES, ALSO, SHARE)] == [
        "", "one", "a, b", "-1 (all), or 1 to 8", "0 to 1",
    ]  # fmt: skip


def test_a_choice_asks_its_registry_each_time(monkeypatch):
    assert CHOICE.refusal("two") == "must be one of one"
    monkeypatch.setitem(NAMES, "two", 2)
    assert CHOICE.refusal("two") == ""


def test_a_group_has_what_is_added_in_the_order_of_the_list():
    added, reward = dict.fromkeys(("mine", "yours"), SHARE), Group("what a reply earns", clip=SHARE)
    group = Group("all", seed=WHOLE, reward=Group(reward.meaning, **reward.members, **added), dir=TEXT)
    assert list(reward.flat()) == ["clip"]
    assert list(group.flat()) == ["seed", "reward.clip", "reward.mine", "reward.yours", "dir"]
    assert group.defaults() == {"seed": 3, "reward": {"clip": 0.5, "mine": 0.5, "yours": 0.5}, "dir": ""}
    assert dict(group.walk())["reward"].meaning == "what a reply earns"
