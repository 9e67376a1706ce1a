"""IMDb's tables joined to a catalogue: small tables by hand in their exact format, then ReDial's own there and back."""

import collections
import csv
import gzip
import json
import random
import tracemalloc
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from crs_jax.config import validate
from crs_jax.data import corpus, imdb, redial
from crs_jax.data.imdb_tables import BASICS, COLUMNS, NAMES, PRINCIPALS, Tables
from crs_jax.data.title_matching import keys
from crs_jax.runtime.errors import InputError

DATA = SimpleNamespace(on_error="raise", revision="main")
HEADERS = {
    BASICS: "tconst\ttitleType\tprimaryTitle\toriginalTitle\tisAdult\tstartYear\tendYear\truntimeMinutes\tgenres",
    PRINCIPALS: "tconst\tordering\tnconst\tcategory\tjob\tcharacters",
    NAMES: "nconst\tprimaryName\tbirthYear\tdeathYear\tprimaryProfession\tknownForTitles",
}
TITLES = """
tt0000001 movie      | Alien             | Alien                  | 1979 | Horror,Sci-Fi
tt0000002 tvEpisode  | Alien             | Alien                  | 1979 | Comedy
tt0000003 short      | Alien             | Alien                  | 1979 | Short
tt0000004 videoGame  | Nine Lives        | Nine Lives             | 2001 | Action
tt0000005 movie      | Léon: The Professional | Léon              | 1994 | Action
tt0000006 movie      | The Matrix        | The Matrix             | 1999 | \\N
tt0000007 movie      | Fast & Furious    | Fast & Furious         | 2009 | Action
tt0000008 movie      | Rocky II          | Rocky II               | 1979 | Drama
tt0000009 movie      | Late              | Late                   | 2006 | Drama
tt0000010 movie      | Twice             | Twice                  | 2004 | Drama
tt0000011 movie      | Twice             | Twice                  | 2006 | Comedy
tt0000012 movie      | Even              | Even                   | 2010 | Drama
tt0000013 movie      | Even              | Even                   | 2010 | Comedy
tt0000021 movie      | Equal             | Equal                  | 2010 | Drama
tt0000020 movie      | Equal             | Equal                  | 2010 | Comedy
tt0000030 tvSeries   | Park              | Park                   | 1997 | Animation
tt0000031 tvMovie    | Common            | Common                 | 1990 | Drama
tt0000032 tvMovie    | Common            | Common                 | 1991 | Drama
tt0000033 movie      | Unreleased        | Unreleased             | \\N  | Drama
tt0000034 movie      | The Thing         | The Thing              | 1982 | Horror
tt0000035 movie      | Thing             | Thing                  | 1982 | Comedy
tt0000036 movie      | Spirited Away     | Sen to Chihiro         | 2001 | Animation
tt0000037 movie      | Sen to Chihiro    | Other                  | 2001 | Drama
tt10000038 movie     | $                 | Dollars                | 1971 | Comedy
tt0000039 movie      | Near and short    | Near and short         | 2003 | Drama
tt0000040 short      | Near and short    | Near and short         | 2004 | Short
tt0000041 short      | Near and short    | Near and short         | 2002 | Short
tt0000042 movie      | Who's There?      | Who's There?           | 1990 | Drama
tt0000043 movie      | The Witch         | The Witch              | 2015 | Horror
tt0000044 short      | The Witch         | The Witch              | 2016 | Short
tt0000045 movie      | On Stage          | On Stage               | 2001 | Drama
tt0000046 tvSpecial  | On Stage          | On Stage               | 2000 | Comedy
tt0000047 movie      | Between           | Between                | 2001 | Drama
tt0000048 movie      | Between           | Between                | 2003 | Comedy
tt0000049 tvShort    | Between           | Between                | 2002 | Short
tt0000050 tvSeries   | Only Short        | Only Short             | 2001 | Comedy
tt0000051 short      | Only Short        | Only Short             | 2000 | Short
"""
ITEMS = {  # id: name in the movie list, the title it is, how it was found
    "1": ("Alien (1979)", "tt0000001", "exact year"),
    "2": ("Nine Lives (2001)", None, "unmatched"),
    "3": ("LEON - the professional  (1994)", "tt0000005", "exact year"),
    "4": ('"Matrix, The (1999)"', "tt0000006", "exact year"),
    "5": ("Fast and Furious (2009)", "tt0000007", "exact year"),
    "6": ("Rocky 2 (1979)", "tt0000008", "exact year"),
    "7": ("Late (2005)", "tt0000009", "one year off"),
    "8": ("Twice (2005)", None, "unmatched"),  # either could be it
    "9": ("Even (2010)", "tt0000013", "ambiguous"),  # it has more principals
    "10": ("Equal (2010)", "tt0000020", "ambiguous"),  # the older entry
    "11": ("Park", "tt0000030", "no year given"),
    "12": ("Common", None, "unmatched"),
    "13": ("Unreleased", None, "unmatched"),
    "14": ("Alien (1979)", "tt0000001", "exact year"),  # a duplicate of the corpus
    "15": ("The Thing (1982)", "tt0000034", "exact year"),
    "16": ("Thing (1982)", "tt0000035", "exact year"),
    "17": ("Sen to Chihiro (2001)", "tt0000037", "exact year"),  # a title comes before an original one
    "18": ("$ (1971)", "tt10000038", "exact year"),
    "19": ("Near and short (2003)", "tt0000039", "exact year"),
    "20": ("Late (2008)", None, "unmatched"),  # two years off
    "21": ("Who's There%3F (1991)", "tt0000042", "one year off"),
    "22": ("Nothing like it", None, "unmatched"),
    "23": ("The Witch (2016)", "tt0000043", "one year off"),  # not the short of that year
    "24": ("On Stage (2000)", "tt0000045", "one year off"),  # not the special of that year
    "25": ("Between (2002)", None, "unmatched"),  # either film, and not the short
    "26": ("Only Short (2000)", "tt0000051", "exact year"),  # there is no film
}
PEOPLE = [
    "tt0000001\t3\tnm0000003\tactor\t\\N\t[\"Dallas\"]",
    "tt0000001\t1\tnm0000001\tactress\t\\N\t[\"Ripley\"]",
    "tt0000001\t2\tnm0000002\tactor\t\\N\t\\N",
    "tt0000001\t4\tnm0000004\tself\t\\N\t\\N",
    "tt0000001\t5\tnm0000005\tdirector\t\\N\t\\N",
    "tt0000001\t7\tnm0000006\twriter\tstory \"by\"\t\\N",
    "tt0000001\t6\tnm0000005\twriter\t\\N\t\\N",
    "tt0000001\t8\tnm0000007\tproducer\t\\N\t\\N",
    "tt0000001\t9\tnm0000009\tdirector\t\\N\t\\N",
    "tt0000002\t1\tnm0000007\tactor\t\\N\t\\N",
    "tt0000012\t1\tnm0000001\tactor\t\\N\t\\N",
    "tt0000013\t1\tnm0000002\tactor\t\\N\t\\N",
    "tt0000013\t2\tnm0000003\tcomposer\t\\N\t\\N",
]  # fmt: skip
NAMED = [
    "Sigourney Weaver",
    "John Hurt",
    "Tom Skerritt",
    "Jones the Cat",
    "Ridley Scott",
    "Dan O'Bannon",
    "Extra",
    'Ö"x',
]


def pack(path, lines):
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def write_tables(folder, titles, people, names):
    folder.mkdir(exist_ok=True)
    rows = []
    for imdb_id, kind, primary, original, year, genres in titles:
        rows.append(f"{imdb_id}\t{kind}\t{primary}\t{original}\t0\t{year}\t\\N\t\\N\t{genres}")
    pack(folder / BASICS, [HEADERS[BASICS], *rows])
    pack(folder / PRINCIPALS, [HEADERS[PRINCIPALS], *people])
    pack(folder / NAMES, [HEADERS[NAMES], *(f"{ids}\t{name}\t\\N\t\\N\tactor,writer\t\\N" for ids, name in names)])
    return folder


@pytest.fixture
def tables(tmp_path):
    lines = [[part.strip() for part in line.split("|")] for line in TITLES.strip().splitlines()]
    titles = [(*first.split(), *rest) for first, *rest in lines]
    names = [(f"nm{number:07d}", name) for number, name in enumerate(NAMED, 1)]
    return write_tables(tmp_path / "imdb", titles, PEOPLE, names)


@pytest.fixture
def movies(tmp_path):
    path = tmp_path / "movies_with_mentions.csv"
    path.write_text("movieId,movieName,nbMentions\n" + "".join(f"{i},{ITEMS[i][0]},1\n" for i in ITEMS))
    return path


def test_the_columns_are_those_that_imdb_documents():
    assert {name: tuple(header.split("\t")) for name, header in HEADERS.items()} == COLUMNS


def test_every_way_to_find_a_film(tables, movies):
    found, counts = imdb.join(imdb.catalogue_items(str(movies)), Tables(tables))
    assert {item: entry["imdb_id"] for item, entry in found.items()} == {i: t for i, (_, t, _) in ITEMS.items() if t}
    ways = collections.Counter(how for _, _, how in ITEMS.values())
    assert {name: counts[name] for name in ways} == dict(ways)
    assert counts["items"] == len(ITEMS) == sum(ways.values())
    assert (
        found["1"]
        == found["14"]
        == {
            "name": "Alien (1979)",
            "genre": ["horror", "sci-fi"],
            "plot": "",
            "director": ["Ridley Scott"],  # the other has no name
            "writer": ["Ridley Scott", "Dan O'Bannon"],  # in the order of the billing
            "star": ["Sigourney Weaver", "John Hurt", "Tom Skerritt"],
            "imdb_id": "tt0000001",
        }
    )
    assert (found["4"]["genre"], found["4"]["star"]) == ([], [])
    assert counts["with genre"] == len(found) - 1
    assert (counts["with director"], counts["with writer"], counts["with star"]) == (2, 2, 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Matrix, The", "the matrix"),
        ("Amélie", "AMELIE"),
        ("Spider-Man 2", "Spider Man II"),
        ("Fast & Furious", "Fast and Furious!"),
        ("O Brother, Where Art Thou%3F", "O Brother, Where Art Thou?"),
        ("Mission: Impossible – Fallout", "Mission Impossible - Fallout"),
        ("Ocean's Eleven", "Ocean’s Eleven"),
    ],
)  # fmt: skip
def test_titles_that_are_the_same(one, other):
    assert keys(one) == keys(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Alien", "Aliens"), ("Saw", "Saw II"), ("$", "..."), ("Her", "The"), ("Up", "Up, Up")]
)
def test_titles_that_are_not(one, other):
    assert keys(one)[1] != keys(other)[1]


def test_the_program_says_what_matched_and_the_loader_reads_what_it_wrote(tables, movies, tmp_path, capsys):
    out = tmp_path / "made" / "movies_metadata.json"
    argv = [f"--catalogue={movies}", f"--imdb={tables}", f"--out={out}"]
    imdb.main(argv)
    said = capsys.readouterr().out
    assert "19 films" in said
    for line in ("items          26", "exact year     12", "one year off   4", "ambiguous      2", "unmatched      7"):
        assert line in said
    with pytest.raises(InputError, match=r"--out=.*: is there already; name a new file"):
        imdb.main(argv)
    record = {
        "conversationId": "c", "initiatorWorkerId": 1, "respondentWorkerId": 2, "initiatorQuestions": {},
        "respondentQuestions": {}, "movieMentions": {"1": "Alien (1979)", "11": "Park"},
        "messages": [{"text": "@1 or @11", "senderWorkerId": 1, "timeOffset": 0}],
    }  # fmt: skip
    for name, number in ((redial.TRAIN, "c1"), (redial.TEST, "c2")):
        (tmp_path / name).write_text(json.dumps({**record, "conversationId": number}) + "\n")
    given = SimpleNamespace(on_error="raise", revision="main", metadata=str(out))
    alien, park = [redial.parse(tmp_path, given, tmp_path / "scratch").catalogue.items[row] for row in (0, 10)]
    assert (alien.title, alien.year, alien.genres) == ("Alien", 1979, ("horror", "sci-fi"))
    assert alien.people == ("Ridley Scott", "Dan O'Bannon", "Sigourney Weaver", "John Hurt", "Tom Skerritt")
    assert (park.name, park.genres) == ("Park (1997)", ("animation",))
    assert redial.parse(tmp_path, DATA, tmp_path / "scratch").catalogue.items[0].genres == ()
    assert redial.files(tmp_path, given)[-1] == out


@pytest.fixture
def hub(tmp_path):
    """A dataset in the hub's layout, which names films in its dialogues alone."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for split in ("train", "test"):
        records = []
        for n in range(8):
            mentions = [{"movieId": "1", "movieName": "Alien  (1979)"}, {"movieId": "11", "movieName": "Park"}]
            messages = [
                {"text": "Hi, like @1?", "senderWorkerId": n, "timeOffset": 0},
                {"text": "Try @11", "senderWorkerId": 100 + n, "timeOffset": 9},
            ]
            records.append({
                "conversationId": f"{split}{n}", "initiatorWorkerId": n, "respondentWorkerId": 100 + n,
                "initiatorQuestions": [], "respondentQuestions": [], "movieMentions": mentions, "messages": messages,
            })  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_a_hub_s_films_get_genres_and_people(tables, hub, tmp_path):
    out = tmp_path / "movies_metadata.json"
    imdb.main([f"--catalogue={hub}", f"--imdb={tables}", f"--out={out}"])
    assert set(json.loads(out.read_text())) == {"1", "11"}
    data = {
        "dataset": "redial", "dir": "", "hub": str(hub), "revision": "main", "domain": "movies", "on_error": "raise",
        "validation_dialogues": 1, "max_train_dialogues": 0, "max_eval_dialogues": 0, "cache_dir": "", "metadata": "",
    }  # fmt: skip
    config = ConfigDict({"data": data, "seed": 0})
    bare = corpus.load(config, tmp_path / "run").catalogue.items
    assert [item.genres for item in bare] == [(), ()]
    config.data.metadata = str(out)
    known = corpus.load(config, tmp_path / "run").catalogue.items
    assert [(item.name, item.genres[0]) for item in known] == [("Alien (1979)", "horror"), ("Park (1997)", "animation")]
    assert "Ridley Scott" in known[0].people
    out.write_text(out.read_text().replace("horror", "comedy"))  # the cache notices
    assert corpus.load(config, tmp_path / "run").catalogue.items[0].genres == ("comedy", "sci-fi")
    out.unlink()
    with pytest.raises(InputError, match=r"config.data.metadata='.*': no such file"):
        corpus.load(config, tmp_path / "run")


def test_the_setting_is_checked_before_anything_runs(tmp_path):
    from configs import common

    config = common.get_config()
    config.data.dataset, config.data.hub, config.data.metadata = "redial", "owner/name", str(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"--config.data.metadata=.*none.json': there is no such file"):
        validate(config)
    (tmp_path / "none.json").write_text("{}")
    validate(config)
    config.data.dataset, config.data.dir = "inspired", str(tmp_path)
    with pytest.raises(InputError, match=r"--config.data.metadata=.*: --config.data.dataset=inspired has its own"):
        validate(config)


def broken(tables, name, line):
    lines = gzip.decompress((tables / name).read_bytes()).split(b"\n")
    lines[2] = line
    (tables / name).write_bytes(gzip.compress(b"\n".join(lines)))


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (BASICS, b"tt0000002\tmovie\tAlien", r":3: found 3 columns, expected 9"),
        (BASICS, b"tt0000002\tmovie\tA\tA\t0\tsoon\t\\N\t\\N\t\\N", r":3: column 'startYear': found text 'soon'"),
        (BASICS, b"xx2\tmovie\tA\tA\t0\t1999\t\\N\t\\N\t\\N", r":3: column 'tconst': found text 'xx2'"),
        (BASICS, b"tt2\tmovie\tcaf\xe9\tA\t0\t1999\t\\N\t\\N\t\\N", r":3: byte 0xe9 is not UTF-8"),
        (PRINCIPALS, b"tt0000001\tx\tnm1\tactor\t\\N\t\\N", r":3: column 'ordering': found text 'x'"),
        (NAMES, b"nm0000002", r":3: found 1 columns, expected 6"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named_or_skipped_and_counted(tables, movies, tmp_path, capsys, name, line, said):
    broken(tables, name, line)
    argv = [f"--catalogue={movies}", f"--imdb={tables}", f"--out={tmp_path / 'out.json'}"]
    with pytest.raises(InputError, match=str(tables / name) + said + r".*: download the table again, or .*=skip"):
        imdb.main(argv)
    assert not (tmp_path / "out.json").exists()
    imdb.main([*argv, "--on_error=skip"])
    shown = capsys.readouterr().out
    assert f"skipped {tables / name}:3: " in " ".join(shown.split())
    assert "lines skipped  1" in shown
    assert json.loads((tmp_path / "out.json").read_text())["1"]["imdb_id"] == "tt0000001"


def test_a_file_that_is_no_such_table_is_one_clear_error(tables, movies, tmp_path):
    def fails(match):
        with pytest.raises(InputError, match=match) as met:
            imdb.join(imdb.catalogue_items(str(movies)), Tables(tables))
        assert "\n" not in str(met.value)

    whole = (tables / PRINCIPALS).read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 4):
        (tables / PRINCIPALS).write_bytes(whole[:size])
        fails(r"principals.tsv.gz:1: found columns" if size == 0 else r"principals.tsv.gz: breaks off or is no gzip")
    (tables / PRINCIPALS).write_bytes(gzip.decompress(whole))
    fails(r"principals.tsv.gz: breaks off or is no gzip file")
    pack(tables / PRINCIPALS, [HEADERS[NAMES]])
    fails(r"principals.tsv.gz:1: found columns nconst, primaryName, .*, expected tconst, ordering")
    (tables / PRINCIPALS).unlink()
    fails(r"--imdb=.*: no file title.principals.tsv.gz: give the folder of IMDb's")
    with pytest.raises(InputError, match=r"--catalogue=.*none.csv: no such file: give ReDial's movies_with_mentions"):
        imdb.catalogue_items(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=r"--catalogue=no/such@v1: .*config.data.hub='no/such'"):
        imdb.catalogue_items("no/such@v1")


def test_memory_does_not_grow_with_the_tables(tables, movies):
    """Rows that the catalogue does not name leave nothing behind: these are 16 MB."""
    long = "9" * 4000
    other = [f"tt1{n:06d}\tmovie\tFilm {n}\tFilm {n}\t0\t1999\t\\N\t{long}\tDrama" for n in range(4000)]
    pack(tables / BASICS, [HEADERS[BASICS], *other])
    items = imdb.catalogue_items(str(movies))
    tracemalloc.start()
    imdb.join(items, Tables(tables))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20  # the reader's own buffers are 4 MB


@pytest.mark.data
def test_redial_s_films_there_and_back(data_dir, tmp_path):
    """Tables made of the metadata that others found for ReDial, among shorts and episodes of the same names."""
    known = json.loads((data_dir / "redial" / "movies_metadata.json").read_text())
    with (data_dir / "redial" / "movies_with_mentions.csv").open(encoding="utf-8") as file:
        names = {row["movieId"]: row["movieName"] for row in csv.DictReader(file)}
    rng = random.Random(0)
    of_title = {known[i]["imdb_id"]: (known[i], redial.split_year(names[i])) for i in known if i in names}
    person, titles, people = {}, [], []
    for imdb_id, (entry, (title, year)) in of_title.items():
        row = (title.replace("%3F", "?").replace("%22", '"'), "\\N", year or 1950, ",".join(entry["genre"]) or "\\N")
        titles.append((imdb_id, "movie", row[0], row[0], *row[2:]))
        for n, kind in enumerate(("tvEpisode", "short", "videoGame")):
            titles.append((f"tt9{n}{imdb_id[2:]}", kind, row[0], row[0], row[2], "Wrong"))
        parts = [("director", "director"), ("writer", "writer"), ("star", "actor")]
        listed = [(name, category) for part, category in parts for name in entry[part]]
        for order, (name, category) in enumerate(listed, 1):
            nconst = person.setdefault(name, f"nm{len(person) + 1:07d}")
            people.append(f"{imdb_id}\t{order}\t{nconst}\t{category}\t\\N\t\\N")
    rng.shuffle(titles)
    rng.shuffle(people)
    tables = Tables(write_tables(tmp_path / "imdb", titles, people, [(ids, name) for name, ids in person.items()]))
    found, counts = imdb.join(imdb.catalogue_items(str(data_dir / "redial" / "movies_with_mentions.csv")), tables)
    shared = collections.Counter((keys(title)[1], year) for _, (title, year) in of_title.values())
    here = {i: (keys(title)[1], year) for i, (title, year) in ((i, redial.split_year(names[i])) for i in names)}
    there = {imdb_id: (keys(title)[1], year) for imdb_id, (_, (title, year)) in of_title.items()}
    same = [i for i in known if i in here and here[i] == there[known[i]["imdb_id"]] and shared[here[i]] == 1]
    dated = [i for i in same if here[i][1]]
    assert len(dated) > 5500
    for i in dated:
        expected = {part: list(dict.fromkeys(known[i][part])) for part in ("genre", "director", "writer", "star")}
        assert {part: found[i][part] for part in expected} == expected, names[i]
        assert found[i]["imdb_id"] == known[i]["imdb_id"]
    assert counts["items"] == 6924
    assert counts["exact year"] + counts["ambiguous"] >= len(dated)
