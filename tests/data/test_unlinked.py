"""Titles that the catalogue does not have, or has several times: what is noticed, and how often wrongly."""

import dataclasses
import random
import time
import types

import pytest

from crs_jax.data import redial
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import SEEKER
from crs_jax.data.titles import Titles
from crs_jax.data.unlinked import Unlinked, UnlinkedTitles

ITEMS = [
    ("Alien", 1979), ("Aladdin", 1992), ("Aladdin", 2019), ("Dune", 1984), ("Toy Story", 1995), ("2012", 2009),
    ("Airplane!", 1980), ("It", 1990), ("It", 2017), ("Star Wars: Episode I", 1999), ("Silence", 2016),
    ("Saw III", 2006), ("Three Billboards", 2017),
    ("Se7en", None), ("Crash", 1996), ("Crash", 2004),
]  # fmt: skip
PEOPLE = ("Will Smith", "Will Ferrell", "Tom Hanks")
CATALOGUE = Catalogue(tuple(Item(str(n), title, year, ("comedy",), PEOPLE) for n, (title, year) in enumerate(ITEMS)))
TITLES = Titles(CATALOGUE)
UNLINKED = UnlinkedTitles(TITLES)
BARE = Catalogue(tuple(Item(str(n), title, year) for n, (title, year) in enumerate(ITEMS)))  # without metadata
UNLINKED_BARE = UnlinkedTitles(Titles(BARE))


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("I loved Xyzzy Nights (1997)", ["Xyzzy Nights (1997)"]),
        ("i loved xyzzy nights (1997)", ["xyzzy nights (1997)"]),
        ("Alien and Xyzzy (1997) were fun", ["Xyzzy (1997)"]),
        ("The Silence of the Lambs (1991) is great", ["The Silence of the Lambs (1991)"]),
        ("Toy Story 3 (2010)", ["Toy Story 3 (2010)"]),
        ("21 Jump Street (2012) !", ["21 Jump Street (2012)"]),
        ("Or Dune (2021)?", ["Dune (2021)"]),
        ("I liked Aladdin (2005)", ["Aladdin (2005)"]),
        ('Something like "Xyzzy Nights"', ["Xyzzy Nights"]),
        ('I saw "Xyzzy"', ["Xyzzy"]),
        ("I have seen Xyzzy Nights, and The Xyzzy.", ["Xyzzy Nights", "The Xyzzy"]),
        ("I love Will Smth", []),  # an actor, misspelt
        ("I love Will Smith and Tom Hanks", []),
        ("I loved Star Wars", []),
        ("I like Romantic Comedy", []),
        ("I love Alien (1979) and airplane! (1980)", []),
        ("Alien (1980)", []),  # one year off
        ("seven (1995)", []),  # no year is known of it
        ('a "chick flick", please', []),
        ("Movies from 2012 (or 2013)", []),
        ("I LOVE SCARY MOVIES SO MUCH", []),
        ("It was made in (1997)", []),
        ("Hello! How are you? I like comedies.", []),
        ("xyzzy nights was good", []),  # nothing shows that it is a title
        ("\ud800 (1997) \ufffc (((1999)))", []),
    ],
)
def test_what_is_unknown(text, unknown):
    assert [title.title for title in UNLINKED.find(text) if not title.year] == unknown


@pytest.mark.parametrize("unlinked", [UNLINKED, UNLINKED_BARE])
@pytest.mark.parametrize(
    "text",
    [
        "My name is John Smith",
        "I want to go to New York",
        "Thanks, and Happy Holidays!",
        "Do you know one about World War Two?",
        "I like Marvel Movies",
        "I have seen all Marvel Cinematic movies",
        "It is Science Fiction",
        "I love Will Ferrell",
        "I like Romantic Comedies",
        "I watch Romantic Comedies and Psychological Thrillers",
        "Good Morning, or Good Evening, from New York",
        "I am from Los Angeles and My Friend too",
        "Better than Happy Holidays, out of New Jersey",
    ],
)
def test_ordinary_talk_is_no_title(unlinked, text):
    assert unlinked.find(text) == ()


@pytest.mark.parametrize("unlinked", [UNLINKED, UNLINKED_BARE])
@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Alien and The Xyzzy Nights were fun", ["The Xyzzy Nights"]),
        ("I would say Alien (1979), or Xyzzy Nights", ["Xyzzy Nights"]),
        ("I saw Xyzzy Nights, and Foo Bar, or Baz Quux", ["Xyzzy Nights", "Foo Bar", "Baz Quux"]),
        ("We watched Xyzzy Nights", ["Xyzzy Nights"]),
        ('I love "Xyzzy Nights"', ["Xyzzy Nights"]),
        ("I love Xyzzy Nights (1997)", ["Xyzzy Nights (1997)"]),
    ],
)
def test_titles_are_noticed_with_and_without_metadata(unlinked, text, unknown):
    assert [title.title for title in unlinked.find(text)] == unknown


def test_behind_verbs_that_people_stand_behind_too_metadata_is_needed():
    assert [title.title for title in UNLINKED.find("I loved Xyzzy Nights")] == ["Xyzzy Nights"]
    assert UNLINKED_BARE.find("I loved Xyzzy Nights") == ()


def test_what_is_said_of_it():
    assert [str(title) for title in UNLINKED.find("I liked Crash, Dune (2021) and Xyzzy Nights (1997)")] == [
        '"Crash" may be Crash (1996) or Crash (2004): add the year.',
        'I do not know "Dune (2021)"; I know Dune (1984).',
        'I do not know "Xyzzy Nights (1997)".',
    ]
    assert UNLINKED.find("The Crash movies, and it was so good. It") == ()
    assert UNLINKED.find("crash (2004)") == ()
    assert Unlinked("x") == ("x", (), False)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Dune (2021)", []),
        ("Dune (1985)", ["Dune (1984)"]),
        ("Toy Story 3 (2010)", []),
        ("Silence of the Lambs (1991)", []),
        ("Alien and Dune (1984)", ["Alien (1979)", "Dune (1984)"]),
        ("Xyzzy (2012)", []),
        ("Airplane! (1980)", ["Airplane! (1980)"]),
        ("I saw Three Billboards", ["Three Billboards (2017)"]),  # not Saw III
        ("saw three", ["Saw III (2006)"]),
    ],
)
def test_a_film_of_another_year_or_a_longer_title_is_not_linked(text, names):
    assert [CATALOGUE.names[item] for item in TITLES.turn(SEEKER, text).items] == names


def test_the_year_is_part_of_the_mention_behind_an_exclamation_mark():
    assert TITLES.turn(SEEKER, "I like Airplane! (1980).").text == "I like \ufffc."


def test_a_long_message_takes_milliseconds():
    text = 'I "Loved Xyzzy Of (1997) And saw The ' * 60
    start = time.perf_counter()
    assert UNLINKED.find(text[:2000])
    assert time.perf_counter() - start < 0.5


@pytest.mark.data
@pytest.mark.parametrize("metadata", [True, False])
def test_alarms_and_finds_on_redials_seekers(data_dir, tmp_path, metadata):
    """Every eighth dialogue of train, titles as ReDial has them, as capitalised words, and in small letters.

    False alarms while the catalogue is whole; and what is noticed, with the whole title, of a fifth of its titles that
    were taken out.
    """
    corpus = redial.parse(data_dir / "redial", types.SimpleNamespace(on_error="raise"), tmp_path)
    catalogue, dialogues = corpus.catalogue, corpus.train[::8]
    if not metadata:
        catalogue = Catalogue(tuple(dataclasses.replace(item, genres=(), people=()) for item in catalogue.items))
    titles = {item.item_id: item.title for item in catalogue.items}
    forms = {"year": catalogue.names, "title": titles, "small": {i: title.lower() for i, title in titles.items()}}
    said = [turn for dialogue in dialogues for turn in dialogue.turns if turn.role == SEEKER]
    whole = Titles(catalogue, corpus.train)
    known = UnlinkedTitles(whole)
    ids = sorted(titles)
    random.Random(0).shuffle(ids)
    gone = set(ids[::5])
    rest = Catalogue(tuple(item for item in catalogue.items if item.item_id not in gone))
    left = {title.lower().removeprefix("the ") for i, title in titles.items() if i not in gone}
    gone = {
        i
        for i in gone
        if titles[i].lower().removeprefix("the ") not in left and catalogue.items[catalogue.index[i]].year
    }
    lacking = UnlinkedTitles(Titles(rest, phrases=whole.phrases))
    alarms, noticed = {}, {}
    for form, names in forms.items():
        alarms[form] = sum(any(not t.year for t in known.find(turn.render(names))) for turn in said) / len(said)
        named = [(turn, item) for turn in said for item in {*turn.items} & gone]
        found = [
            any(not t.year and titles[i].lower() in t.title.lower() for t in lacking.find(turn.render(names)))
            for turn, i in named
        ]
        noticed[form] = sum(found) / len(found)
    print(f"metadata {metadata}: {len(said)} messages, alarms {alarms}; {len(named)} titles, noticed {noticed}")
    assert max(alarms.values()) < 0.002
    assert noticed["year"] > 0.85
    assert noticed["title"] > (0.17 if metadata else 0.06)
