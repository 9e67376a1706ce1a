"""Oracle: slots worked out turn by turn with plain lists, then looked for, one by one, in the packed rows."""

import collections
import itertools

import numpy as np
import pytest

from crs_jax.data.packing import Packer, epoch_batches, pack
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.runtime.errors import InputError

M, N, WORDS = 3, 50, 60_000
SIZES = {"row_tokens": 64, "act_slots": 14, "word_slots": 40}


class Plain(DialogueTokenizer):
    """The ids alone: 60,000 words, so that each word of a test corpus is used once and can be found again."""

    def __init__(self):
        self.num_words, self.num_items, self.unused = WORDS, N, ()
        self.pad, self.seeker, self.recommender, self.rec, self.say, self.end = range(WORDS, WORDS + 6)
        self.item_offset, self.vocab_size = WORDS + 6, WORDS + 6 + N
        self.word_bytes = [b"w"] * WORDS


T = Plain()


def corpus(dialogues, seed, turns=12, words=9):
    """Turns of unique words; in a reply, items of its act stand among them."""
    rng = np.random.default_rng(seed)
    fresh = iter(range(WORDS))
    encoded, roles = [], []
    for _ in range(dialogues):
        said, who = [], []
        for _ in range(rng.integers(1, turns)):
            body = [next(fresh) for _ in range(rng.integers(1, words))]
            if rng.random() < 0.5:
                act = (T.item_offset + rng.choice(N, rng.integers(0, M + 1), replace=False)).tolist()
                for item in [*act, *act[:1]]:
                    body.insert(rng.integers(0, len(body) + 1), item)
                said.append([T.recommender, T.rec, *act, T.say, *body, T.end])
                who.append("recommender")
            else:
                said.append([T.seeker, *body, T.end])
                who.append("seeker")
        encoded.append(said)
        roles.append(who)
    return encoded, roles


def slots_of(turn):
    """(kind, place in the turn, target, items) of each slot of one reply."""
    say = turn.index(T.say)
    act = [token - T.item_offset for token in turn[2:say]]
    for n in range(len(act) + 1):
        target = act[n] if n < len(act) else N
        yield "act", 1 + n, target, tuple(act[:n] + [-1] * (M - n))
    for place in range(say, len(turn) - 1):
        target = turn[place + 1]
        if target >= T.item_offset:
            target = T.item_offset + act.index(target - T.item_offset)
        yield "word", place, target, tuple(act + [-1] * (M - len(act)))


def wanted(encoded, starts=None):
    """Every slot of the corpus, by (dialogue, turn)."""
    return collections.Counter(
        (d, u, *slot)
        for d, dialogue in enumerate(encoded)
        for u, turn in enumerate(dialogue)
        if turn[0] == T.recommender and u >= (starts[d] if starts is not None else 0)
        for slot in slots_of(turn)
    )


def read(rows, encoded):
    """Every slot that the rows hold, by (dialogue, turn), after checking the rows' tokens one by one."""
    owner = {token: d for d, dialogue in enumerate(encoded) for turn in dialogue for token in turn if token < WORDS}
    found, pieces = collections.Counter(), []
    for r, tokens in enumerate(rows["tokens_RT"].tolist()):
        segment, utterance = rows["segment_RT"][r].tolist(), rows["utterance_RT"][r].tolist()
        used = sum(s > 0 for s in segment)
        assert tokens[used:] == [T.pad] * (len(tokens) - used)
        assert segment[used:] == utterance[used:] == [0] * (len(tokens) - used)
        assert not rows["dialogue_RT"][r, used:].any()
        assert segment[:used] == sorted(segment[:used])
        assert set(segment[:used]) == set(range(1, max(segment) + 1))
        home = {}  # place in the row -> (dialogue, turn, place in the turn)
        for s in range(1, max(segment) + 1):
            at = segment.index(s)
            d = next(owner[token] for token, this in zip(tokens, segment, strict=True) if this == s and token in owner)
            turns = list(dict.fromkeys(u for u, this in zip(utterance, segment, strict=True) if this == s))
            assert turns == list(range(turns[0], turns[-1] + 1))
            assert encoded[d][turns[-1]][0] == T.recommender
            pieces.append((d, turns[0], turns[-1]))
            places = [(u, place) for u in turns for place in range(len(encoded[d][u]))]
            for position, (u, place) in enumerate(places):
                assert tokens[at + position] == encoded[d][u][place]
                assert rows["position_RT"][r, at + position] == position
                assert (segment[at + position], utterance[at + position]) == (s, u)
                assert rows["dialogue_RT"][r, at + position] == d
                home[at + position] = d, u, place
            assert at + position + 1 == used or segment[at + position + 1] == s + 1
        for kind, axes, items in (("act", "RA", "act_used_RAM"), ("word", "RW", "word_items_RWM")):
            mask = rows[f"{kind}_mask_{axes}"][r]
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
            assert (rows[items][r][~mask] == -1).all()
            for at, target, row in zip(
                rows[f"{kind}_at_{axes}"][r][mask].tolist(),
                rows[f"{kind}_target_{axes}"][r][mask].tolist(),
                rows[items][r][mask].tolist(),
                strict=True,
            ):
                d, u, place = home[at]
                found[d, u, kind, place, target, tuple(row)] += 1
    return found, pieces


def test_by_hand():
    i = T.item_offset
    turns = [
        [T.seeker, 1, i + 7, T.end], [T.recommender, T.rec, i + 4, i + 2, T.say, 5, i + 2, 6, i + 4, T.end],
        [T.seeker, 9, T.end],
    ]  # fmt: skip
    rows = pack([turns], [["seeker", "recommender", "seeker"]], act_items=M, tokenizer=T, **SIZES)
    assert {name: (array.shape, array.dtype.name) for name, array in rows.items()} == {
        "tokens_RT": ((1, 64), "int32"), "segment_RT": ((1, 64), "int32"),
        "dialogue_RT": ((1, 64), "int32"), "utterance_RT": ((1, 64), "int32"),
        "position_RT": ((1, 64), "int32"), "act_at_RA": ((1, 14), "int32"), "act_target_RA": ((1, 14), "int32"),
        "act_used_RAM": ((1, 14, M), "int32"), "act_mask_RA": ((1, 14), "bool"), "word_at_RW": ((1, 40), "int32"),
        "word_target_RW": ((1, 40), "int32"), "word_items_RWM": ((1, 40, M), "int32"),
        "word_mask_RW": ((1, 40), "bool"),
    }  # fmt: skip
    row = {name: array[0].tolist() for name, array in rows.items()}
    assert row["tokens_RT"] == [*turns[0], *turns[1], *[T.pad] * 50]  # the last turn bears no loss and is left out
    assert row["segment_RT"] == [1] * 14 + [0] * 50
    assert row["utterance_RT"][:14] == [0] * 4 + [1] * 10
    assert row["position_RT"][:14] == list(range(14))
    assert row["act_mask_RA"] == [True] * 3 + [False] * 11
    assert row["act_at_RA"][:3] == [5, 6, 7]  # <|rec|> and the two items
    assert row["act_target_RA"][:3] == [4, 2, N]
    assert row["act_used_RAM"][:4] == [[-1, -1, -1], [4, -1, -1], [4, 2, -1], [-1, -1, -1]]
    assert row["word_mask_RW"] == [True] * 5 + [False] * 35
    assert row["word_at_RW"][:5] == [8, 9, 10, 11, 12]
    assert row["word_target_RW"][:5] == [5, i + 1, 6, i, T.end]
    assert row["word_items_RWM"][:6] == [[4, 2, -1]] * 5 + [[-1] * 3]


def test_a_full_act_still_has_a_slot_for_say():
    turn = [T.recommender, T.rec, *(T.item_offset + row for row in (9, 8, 7)), T.say, T.end]
    rows = pack([[turn]], None, act_items=M, tokenizer=T, **SIZES)
    assert rows["act_target_RA"][0, :4].tolist() == [9, 8, 7, N]
    assert rows["act_used_RAM"][0, 3].tolist() == [9, 8, 7]
    assert rows["word_target_RW"][0][rows["word_mask_RW"][0]].tolist() == [T.end]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "sizes", [SIZES, {"row_tokens": 256, "act_slots": 40, "word_slots": 160}, {**SIZES, "act_slots": 5}]
)
def test_every_reply_token_bears_loss_once(seed, sizes):
    encoded, roles = corpus(60, seed, turns=30 if seed % 2 else 8)
    rows = pack(encoded, roles, act_items=M, tokenizer=T, **sizes)
    found, pieces = read(rows, encoded)
    assert found == wanted(encoded)
    assert rows["act_mask_RA"].sum() + rows["word_mask_RW"].sum() == sum(
        len(turn) - 2 for dialogue in encoded for turn in dialogue if turn[0] == T.recommender
    )
    # A dialogue is in one piece where it fits, in as few as a row's turns allow elsewhere.
    for d, dialogue in enumerate(encoded):
        mine = sorted(piece for piece in pieces if piece[0] == d)
        replies = [u for u, turn in enumerate(dialogue) if turn[0] == T.recommender]
        counts = [len(list(slots_of(dialogue[u]))) for u in replies]
        whole = sum(len(turn) for turn in dialogue[: replies[-1] + 1]) if replies else 0
        acts = sum(sum(kind == "act" for kind, *_ in slots_of(dialogue[u])) for u in replies)
        if whole <= sizes["row_tokens"] and acts <= sizes["act_slots"] and sum(counts) - acts <= sizes["word_slots"]:
            assert len(mine) == bool(replies)
        for (_, _, last), (_, first, _) in itertools.pairwise(mine):
            assert first > last


def test_rows_are_filled():
    encoded, roles = corpus(400, 3)
    rows = pack(encoded, roles, act_items=M, tokenizer=T, row_tokens=256, act_slots=64, word_slots=256)
    held = (rows["segment_RT"] > 0).sum()
    assert len(rows["tokens_RT"]) <= np.ceil(held / 256) * 1.05


def test_longest_first():
    turns = [[[T.recommender, T.rec, T.say, *range(length - 4), T.end]] for length in (30, 30, 34, 34)]
    rows = pack(turns, None, act_items=M, tokenizer=T, row_tokens=64, act_slots=14, word_slots=64)
    assert (rows["segment_RT"] > 0).all()  # 34 + 30, twice; in the order given it would take three rows
    assert rows["segment_RT"].shape == (2, 64)


def test_starts_leave_out_what_stands_before():
    encoded, roles = corpus(50, 7)
    starts = [int(n) for n in np.random.default_rng(0).integers(0, [len(dialogue) for dialogue in encoded])]
    found, pieces = read(pack(encoded, roles, act_items=M, tokenizer=T, starts=starts, **SIZES), encoded)
    assert found == wanted(encoded, starts)
    assert all(first >= starts[d] for d, first, _ in pieces)


def test_turns_too_long_for_a_row_are_cut():
    i = T.item_offset
    words = list(range(100))
    talk = [
        [[T.seeker, *words, T.end], [T.recommender, T.rec, i + 3, T.say, *words, T.end]],  # both too long
        [[T.recommender, T.rec, T.say, *words[:45], T.end]],  # fits the row, has too many words
    ]
    rows = pack(talk, None, act_items=M, tokenizer=T, **SIZES)
    for r in range(2):
        said = rows["tokens_RT"][r][rows["segment_RT"][r] > 0].tolist()
        head = [T.recommender, T.rec, i + 3, T.say] if i + 3 in said else [T.recommender, T.rec, T.say]
        assert said == [*head, *words[:39], T.end]
        assert rows["word_target_RW"][r][rows["word_mask_RW"][r]].tolist() == [*words[:39], T.end]
    assert rows["tokens_RT"].shape[0] == 2
    # With room for the words, the row's tokens bound the reply; the seeker's cut turn fills a row and is left out.
    rows = pack(talk[:1], None, act_items=M, tokenizer=T, row_tokens=64, act_slots=14, word_slots=200)
    assert rows["tokens_RT"].tolist() == [[T.recommender, T.rec, i + 3, T.say, *words[:59], T.end]]


def test_dialogues_without_replies_and_no_dialogues():
    rows = pack([[[T.seeker, 1, T.end]]], [["seeker"]], act_items=M, tokenizer=T, **SIZES)
    assert rows["tokens_RT"].shape == (0, 64)
    assert pack([], [], act_items=M, tokenizer=T, **SIZES)["act_used_RAM"].shape == (0, 14, M)
    assert (
        epoch_batches([], [], act_items=M, tokenizer=T, rows=4, crop=0.5, rng=np.random.default_rng(0), **SIZES) == []
    )


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_epoch_batches_hold_the_corpus_once_shuffled():
    encoded, roles = corpus(60, 11)
    options = {"act_items": M, "tokenizer": T, "rows": 4, "crop": 0.0, **SIZES}
    batches = epoch_batches(encoded, roles, rng=np.random.default_rng(0), **options)
    packed = pack(encoded, roles, act_items=M, tokenizer=T, **SIZES)
    assert all(len(array) == 4 for batch in batches for array in batch.values())
    assert len(batches) == -(-len(packed["tokens_RT"]) // 4)
    every = joined(batches)
    assert {name: array.dtype for name, array in every.items()} == {n: array.dtype for n, array in packed.items()}
    used = every["segment_RT"].any(axis=1)
    assert used.tolist() == sorted(used.tolist(), reverse=True)  # empty rows stand last
    found, _ = read({name: array[used] for name, array in every.items()}, encoded)
    assert found == wanted(encoded)
    assert not every["act_mask_RA"][~used].any()
    assert not every["word_mask_RW"][~used].any()
    assert (every["tokens_RT"][~used] == T.pad).all()
    assert (every["tokens_RT"][used] != packed["tokens_RT"]).any()
    again = joined(epoch_batches(encoded, roles, rng=np.random.default_rng(0), **options))
    other = joined(epoch_batches(encoded, roles, rng=np.random.default_rng(1), **options))
    assert all((again[name] == every[name]).all() for name in every)
    assert (other["tokens_RT"] != every["tokens_RT"]).any()


@pytest.mark.parametrize("crop", [0.5, 1.0])
def test_crops_start_anywhere_up_to_the_last_reply(crop):
    encoded, roles = corpus(80, 5)
    packer = Packer(encoded, roles, act_items=M, tokenizer=T, row_tokens=512, act_slots=200, word_slots=500)
    rng = np.random.default_rng(0)
    first = collections.defaultdict(set)
    whole = 0
    for _ in range(60):
        found, pieces = read(joined(packer.epoch(rows=1, crop=crop, rng=rng)), encoded)
        starts = dict.fromkeys(range(len(encoded)), 10**6) | {d: start for d, start, _ in pieces}
        assert found == wanted(encoded, starts)
        whole += sum(start == 0 for start in starts.values())
        for d, start, _ in pieces:
            first[d].add(start)
    replies = {d: [u for u, who in enumerate(said) if who == "recommender"] for d, said in enumerate(roles)}
    assert set(first) == {d for d, places in replies.items() if places}  # all that have a reply, each epoch
    short = [d for d in first if replies[d][-1] < 4]
    assert all(first[d] == set(range(replies[d][-1] + 1)) for d in short)
    expected = sum((1 - crop) + crop / (replies[d][-1] + 1) for d in first) / len(first)
    assert abs(whole / (60 * len(first)) - expected) < 0.02  # 4 standard errors


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ([T.recommender, T.rec, T.say, T.item_offset, T.end], "names an item that its act does not propose"),
        ([T.recommender, T.rec, 1, T.end], "holds one <|say|>"),
        ([T.recommender, T.rec, *(T.item_offset + n for n in range(M + 1)), T.say, T.end], "an act of 4 items"),
    ],
)
def test_turns_that_the_grammar_forbids(turn, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        pack([[turn]], None, act_items=M, tokenizer=T, **SIZES)


def test_roles_must_agree_and_rows_must_hold_a_reply():
    encoded, roles = corpus(3, 0)
    with pytest.raises(ValueError, match="roles and encoded turns do not agree"):
        pack(encoded, [["seeker"] * len(said) for said in roles], act_items=M, tokenizer=T, **SIZES)
    with pytest.raises(InputError, match=r"row_tokens=6 .*at least 7 tokens and 4 act slots"):
        pack(encoded, roles, act_items=M, tokenizer=T, row_tokens=6, act_slots=14, word_slots=40)
