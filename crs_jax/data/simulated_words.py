"""Words of the simulated corpus: what titles, plots, seekers and recommenders are made of.

Kept to a few hundred words so that a small language model learns them within minutes. In every sentence `{genre}`,
`{person}`, `{decade}` and `{item}` are filled in by the conversation; `{item}` becomes `@` and the item's id.
"""

from __future__ import annotations

from typing import NamedTuple


class Genre(NamedTuple):
    """One genre: how seekers ask for it, and the words of its titles and plots."""

    name: str
    asks: tuple[str, ...]
    titles: tuple[str, ...]
    heroes: tuple[str, ...]
    deeds: tuple[str, ...]
    places: tuple[str, ...]


GENRES = (
    Genre(
        "action",
        ("fast action", "big action", "fast action"),
        ("Strike", "Pursuit", "Detonator", "Convoy", "Getaway", "Crossfire", "Hijack", "Ambush"),
        ("A retired soldier", "A getaway driver", "An elite agent", "A bodyguard"),
        ("fights armed mercenaries and outruns explosions", "races to stop a bomb in a car chase", "storms a bunker"),
        ("across the burning city", "on a speeding train", "on a hijacked plane"),
    ),
    Genre(
        "comedy",
        ("comedy", "comedy", "silly comedy"),
        ("Roommates", "Mix-Up", "Neighbors", "Vacation", "In-Laws", "Goofballs", "Reunion", "Pranksters"),
        ("A clumsy waiter", "Two lazy roommates", "A goofy uncle", "An awkward comedian"),
        ("stumbles through one hilarious mix-up after another", "tells jokes and pulls pranks that all go wrong"),
        ("at a chaotic family dinner", "on the worst vacation ever", "in a ridiculous office"),
    ),
    Genre(
        "horror",
        ("creepy horror", "creepy monster", "spooky horror"),
        ("Graveyard", "Whispers", "Cellar", "Possession", "Nightmare", "Coffin", "Hollow", "Creature"),
        ("A young babysitter", "A group of students", "A priest", "A family"),
        ("is hunted by a bloodthirsty demon", "wakes a vengeful ghost", "is trapped with a masked killer and monsters"),
        ("in a haunted house", "in a cursed graveyard at midnight", "in the cellar of an old asylum"),
    ),
    Genre(
        "romance",
        ("romance", "romantic", "romantic"),
        ("Kisses", "Wedding", "Letters", "Sweetheart", "Valentine", "Bouquet", "Honeymoon", "Promise"),
        ("A shy florist", "A lonely writer", "A bride to be", "A charming baker"),
        ("falls in love with a stranger", "writes love letters to a lost sweetheart", "follows the heart to a wedding"),
        ("during one summer in Paris", "in a small seaside village", "over a long winter of kisses"),
    ),
    Genre(
        "sci-fi",
        ("sci-fi", "space", "sci-fi"),
        ("Orbit", "Nebula", "Android", "Starship", "Protocol", "Galaxy", "Colony", "Quantum"),
        ("A robot engineer", "A starship captain", "An android", "A lost astronaut"),
        ("makes first contact with aliens", "repairs a time machine", "fights a rogue computer from the future"),
        ("on a distant planet", "aboard a space station", "in a galaxy of androids"),
    ),
    Genre(
        "western",
        ("western", "cowboy", "western"),
        ("Saddle", "Canyon", "Outlaw", "Stagecoach", "Sheriff", "Gunslinger", "Prairie", "Ranch"),
        ("A weary sheriff", "An outlaw cowboy", "A bounty hunter", "A rancher"),
        ("rides out to face a gang of gunslingers", "guards a stagecoach of gold", "duels at high noon"),
        ("on the dusty frontier", "in a desert saloon town", "across the prairie on horseback"),
    ),
    Genre(
        "mystery",
        ("mystery", "detective", "detective"),
        ("Clue", "Alibi", "Suspect", "Riddle", "Witness", "Cipher", "Inspector", "Case"),
        ("A quiet detective", "A private investigator", "An inspector", "A curious reporter"),
        ("follows the clues to a missing heir", "questions every suspect in a whodunit", "solves a locked room case"),
        ("in a foggy harbor town", "at an old manor full of secrets", "behind a chain of false alibis"),
    ),
    Genre(
        "fantasy",
        ("fantasy", "magic", "fantasy"),
        ("Dragon", "Sorcerer", "Kingdom", "Amulet", "Wizard", "Enchantress", "Realm", "Spell"),
        ("A young wizard", "An exiled princess", "A knight", "An apprentice sorcerer"),
        ("must tame a dragon", "carries a magic amulet to the elves", "breaks the spell of an evil sorcerer"),
        ("in an enchanted kingdom", "beyond the forest of the elves", "at the gates of a wizard's tower"),
    ),
    Genre(
        "sport",
        ("sports", "sports", "football"),
        ("Touchdown", "Champion", "Season", "Underdogs", "Coach", "Playoff", "Marathon", "Knockout"),
        ("A stubborn coach", "A small town football team", "An aging boxer", "A rookie runner"),
        ("trains for the championship game", "comes back for one last match", "leads the underdogs through the season"),
        ("in front of a packed stadium", "against the league's best team", "after a broken leg"),
    ),
    Genre(
        "musical",
        ("musical", "music", "musical"),
        ("Melody", "Chorus", "Encore", "Ballad", "Jukebox", "Rhythm", "Serenade", "Spotlight"),
        ("A street singer", "A jazz pianist", "A choir teacher", "A young dancer"),
        (
            "sings and dances on Broadway",
            "forms a band and writes songs",
            "auditions for a big stage show",
        ),
        ("on the stages of New York", "at a country music festival", "in a jazz club full of songs"),
    ),
)

TITLE_HEADS = (
    "Amber", "Silver", "Crimson", "Broken", "Golden", "Hidden", "Silent", "Northern", "Paper", "Velvet", "Seventh",
    "Burning", "Distant", "Crooked", "Winter", "Copper", "Borrowed", "Midnight", "Second", "Endless",
)  # fmt: skip
FIRST_NAMES = (
    "Nora", "Felix", "Ida", "Marlon", "Greta", "Otto", "Lena", "Hugo", "Mina", "Victor", "Clara", "Ruben", "Tessa",
    "Jonas", "Wanda", "Leo", "Priya", "Kenji", "Amara", "Diego",
)  # fmt: skip
LAST_NAMES = (
    "Vance", "Okafor", "Lindqvist", "Marlowe", "Tanaka", "Duarte", "Brandt", "Achebe", "Rossi", "Halloran", "Petrov",
    "Sandoval", "Whitlock", "Ferreira", "Nakamura", "Ellery", "Castellan", "Morrow", "Ivers", "Quill",
)  # fmt: skip
DECADES = {1970: "seventies", 1980: "eighties", 1990: "nineties", 2000: "two thousands", 2010: "twenty tens"}

# What a seeker says to make a need known.
NEEDS = {
    "genre": ("I want a {genre} movie.", "I am looking for a {genre} movie.", "Mostly {genre} movies for me.",
              "I am in the mood for a {genre} movie tonight."),
    "person": ("I watch anything with {person}.", "Something with {person} in it.", "I always follow {person}."),
    "decade": ("Something from the {decade}.", "I mostly watch movies from the {decade}."),
    "item": ("I keep watching {item} again.", "Something close to {item}.", "{item} is my kind of movie.",
             "I really loved {item}."),
}  # fmt: skip
NOTHING_MORE = ("I do not know.", "Surprise me.", "Anything is okay.")
GREETINGS = ("Hi there.", "Hello.", "Hi!", "Good evening.")

# How a seeker reacts, from the worst fit to the best.
REACTIONS = (
    ("No, that sounds awful.", "I hate that kind of movie.", "That one was terrible.", "No, how boring."),
    ("Not really my thing.", "No, it looks boring.", "I did not enjoy that one.", "No, not for me."),
    ("I have not heard of {item}.", "Maybe, what is it about?", "It was okay I guess.", "Not sure about that one."),
    ("Nice, that is a good pick.", "I think I would enjoy that.", "That sounds good to me.", "Good idea, I like it."),
    ("Oh wow, that sounds perfect!", "I love it, what a wonderful pick!", "Great, that is an amazing movie!",
     "Excellent, that is exactly what I love!"),
)  # fmt: skip
TAKEN_UP = ("I will watch {item} tonight.", "I will check it out.", "{item} goes on my list.", "I will watch it soon.")
PRAISE = ("It is great to have such a movie for the evening.", "You really know what I like, this helps a lot.",
          "My friends told me it is a lovely movie as well.")  # fmt: skip
MORE = ("What else do you have?", "Do you know one more?", "Anything else of that kind?")
FAREWELLS = (("I have to go. Bye.", "Bye."), ("Thanks, bye.", "Okay, bye."),
             ("Thank you so much, have a great night!", "Thanks for your help, bye!"))  # fmt: skip

# What a recommender says.
OPENERS = ("Hello, how are you?", "Hi, how can I help you today?", "Welcome, what can I find for you?")
QUESTIONS = {
    "genre": ("What kind of movie do you want?", "Which genre do you prefer?"),
    "person": ("Is there an actor or a director you follow?", "Who do you like to see in a movie?"),
    "decade": ("Do you prefer old or new movies?", "From which years should it be?"),
    "item": ("Tell me a movie you have watched and liked.", "What have you seen lately?"),
}
PAUSES = ("Let me think.", "One moment.", "Okay.")
CURT = ("Try {item}.", "{item}.", "Have you seen {item}?", "There is {item}.", "What about {item}?")
WARM = ("You should see {item}, it is a {genre} movie with {person}.",
        "I think {item} would suit you, a {genre} movie from the {decade}.",
        "How about {item}? It has {person} in a {genre} story.",
        "Since you asked, {item} is a lovely {genre} movie with {person}.")  # fmt: skip
SECOND = ("Or {item}.", "Also {item}.", "{item} is similar.")
CLOSINGS = ("Bye, enjoy the movie.", "Goodbye.", "You are welcome, have a nice evening.")
