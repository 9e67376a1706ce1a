import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_jax.data.dialogue import MENTION
from crs_jax.data.mentions import Candidate, place


def named(text, *titles, annotated=True):
    marked, items = place(text, [Candidate(t, (t,), annotated) for t in titles])
    assert marked.count(MENTION) == len(items)
    return marked.replace(MENTION, "_"), list(items)


@pytest.mark.parametrize(
    ("text", "title", "marked"),
    [
        ("Seen Joker? Joker is great", "Joker", "Seen _? _ is great"),
        ("i saw joker, jokers", "Joker", "i saw _, jokers"),
        ("i saw joker (2019) once", "Joker (2019)", "i saw _ once"),
        ("the shawshank redemption!", "The Shawshank Redemption", "_!"),
        ("like Shawshank Redemption.", "The Shawshank Redemption", "like _."),
        ("saw IT chapter 2 today", "It Chapter Two", "saw _ today"),
        ("Frozen 2 it is", "Frozen II", "_ it is"),
        ("forest gump", "Forrest Gump", "_"),
        ("Avengers End Game", "Avengers: Endgame", "_"),
        ("fast and furious", "Fast & Furious", "_"),
        ("amelie", "Amélie", "_"),
        ("mr rogers neighborhood", "Mr. Roger's Neighborhood", "_"),
        ("It was good", "It", "_ was good"),
    ],
)
def test_found(text, title, marked):
    assert named(text, title)[0] == marked


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("I am the misses lol", "I Am Michael"),
        ("i like it, it's good", "It"),
        ("It's good", "It"),
        ("World War II movies", "World War III"),
        ("Star Wars is OK", "Star Wars II"),
        ("A Christmas Story", "A Christmas Story 2"),
        ("Captain Miller", "Captain Marvel"),
        ("uplifting", "Up"),
        ("anything", "!!!"),
        ("anything", ""),
    ],
)
def test_not_found(text, title):
    assert named(text, title) == (text, [])


def test_letter_by_letter_where_the_message_is_not_annotated():
    assert named("a war movie, the War", "War", annotated=False) == ("a war movie, the _", ["War"])
    assert named("forest gump", "Forrest Gump", annotated=False) == ("forest gump", [])


def test_longer_titles_win_and_order_is_the_texts():
    text = "X-Men: Days of Future Past, then X-Men and Alien"
    marked, items = named(text, "Alien", "X-Men", "X-Men: Days of Future Past")
    assert marked == "_, then _ and _"
    assert items == ["X-Men: Days of Future Past", "X-Men", "Alien"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["Up", "up", "It", "the", "Alien 3", "(", "2019", ")", "é", "'s", "&", "\n", "𝔘"]), max_size=9
    ),
    st.lists(st.sampled_from(["Up", "It", "The Alien 3", "Alien III (2019)", "é", "U (", ")", "It's Up"]), max_size=4),
    st.booleans(),
)
def test_only_titles_are_taken_out(words, titles, annotated):
    """What is left around the mentions stands in the text in the same order."""
    text = " ".join(words)
    marked, items = place(text, [Candidate(t, (t,), annotated) for t in titles])
    assert marked.count(MENTION) == len(items)
    at = 0
    for part in marked.split(MENTION):
        at = text.find(part, at)
        assert at >= 0
        at += len(part)
    if not annotated:
        rendered = marked
        for item in items:
            rendered = rendered.replace(MENTION, item, 1)
        assert rendered == text
