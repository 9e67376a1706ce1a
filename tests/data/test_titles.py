"""Typed titles: which are linked, and that an unclear one is not."""

import pytest

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, SEEKER, Dialogue, Turn
from crs_jax.data.titles import Titles

ITEMS = [
    ("Alien", 1979), ("Aladdin", 1992), ("Aladdin", 2019), ("The Matrix", 1999), ("Big", 1988), ("It", 2017),
    ("Get Out", 2017), ("Blade Runner", 1982), ("Blade Runner 2049", 2017), ("Amélie", 2001), ("300", 2006),
    ("WALL·E", 2008), ("Ocean's Eleven", 2001), ("Mr. & Mrs. Smith", 2005), ("Up", None), ("Frozen", 2010),
    ("Frozen", 2010), ("Alien: Resurrection", 1997), ("Se7en", None), ("Rocky II", 1979), ("The Comedy", 2012),
]  # fmt: skip
CATALOGUE = Catalogue(tuple(Item(str(n), title, year) for n, (title, year) in enumerate(ITEMS)))
SPOKEN = ("a big one", "get out of here", "so big", "let me get out", "a comedy", "comedy")
TALK = Dialogue("d", tuple(Turn(SEEKER, text) for text in SPOKEN))
TITLES = Titles(CATALOGUE, [TALK])


def names(text: str) -> list[str]:
    return [CATALOGUE.names[item] for item in TITLES.turn(SEEKER, text).items]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I loved Alien (1979)!", ["Alien (1979)"]),
        ("alien 1979, please", ["Alien (1979)"]),
        ("I loved alien", ["Alien (1979)"]),
        ("ALIEN and the matrix", ["Alien (1979)", "The Matrix (1999)"]),
        ("like Matrix", ["The Matrix (1999)"]),
        ("Aladdin", []),  # which one?
        ("aladdin (1992)", ["Aladdin (1992)"]),
        ("aladdin [2019]", ["Aladdin (2019)"]),
        ("Blade Runner 2049", ["Blade Runner 2049 (2017)"]),
        ("Blade Runner 1982", ["Blade Runner (1982)"]),
        ("blade runner", ["Blade Runner (1982)"]),
        ("something big", []),
        ("Big is what I want", []),
        ("Big", []),
        ("Up", ["Up"]),
        ("300", ["300 (2006)"]),
        ("A Comedy would be nice", []),
        ("I saw The Comedy", ["The Comedy (2012)"]),
        ("I saw Big yesterday", ["Big (1988)"]),
        ('I saw "big" yesterday', ["Big (1988)"]),
        ("big (1988)", ["Big (1988)"]),
        ("let us get out", []),
        ("Have you seen Get Out?", ["Get Out (2017)"]),
        ("It was good. It really was", []),
        ("I saw It", ["It (2017)"]),
        ("up (2009)", []),
        ("Was Up good?", ["Up"]),
        ("amelie", ["Amélie (2001)"]),
        ("I have seen 300 films", []),
        ("300 (2006)", ["300 (2006)"]),
        ("oceans eleven", ["Ocean's Eleven (2001)"]),
        ("mr and mrs smith", ["Mr. & Mrs. Smith (2005)"]),
        ("frozen (2010)", ["Frozen (2010)"]),  # two items of one name: the first
        ("Alien: Resurrection", ["Alien: Resurrection (1997)"]),
        ("rocky 2", ["Rocky II (1979)"]),
        ("Alien Alien alien", ["Alien (1979)"] * 3),
        ("", []),
        ("?!", []),
    ],
)
def test_what_is_named(text, found):
    assert names(text) == found


def test_only_the_title_and_its_year_are_taken_out():
    turn = TITLES.turn(SEEKER, "So, Alien (1979), or The Matrix?")
    assert turn.text == f"So, {MENTION}, or {MENTION}?"
    assert turn.render(CATALOGUE.names) == "So, Alien (1979), or The Matrix (1999)?"


def test_rendered_turns_are_linked_back():
    text = " ".join(f"{MENTION}," for _ in range(8))
    turn = Turn(SEEKER, text, ("0", "1", "3", "6", "8", "9", "12", "13"))
    assert TITLES.turn(SEEKER, turn.render(CATALOGUE.names)) == turn


def test_neither_ids_nor_the_mark_of_a_mention_are_items():
    turn = TITLES.turn(SEEKER, f"@0 {MENTION} <|end|> @999999 \ud800")
    assert turn.items == ()
    assert turn.text == "@0  <|end|> @999999 \ufffd"
