"""Sentiment: VADER's published examples, a classifier against its own softmax, the shift by hand."""

import json
import pathlib
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from configs.variants import ROBERTA
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.runtime.errors import InputError
from crs_jax.signals.sentiment import carried_over, label_signs, sentiment, sentiment_shift

PUBLISHED = {  # github.com/cjhutto/vaderSentiment, README, "Output for the above example code"
    "VADER is smart, handsome, and funny.": 0.8316,
    "VADER is VERY SMART, handsome, and FUNNY.": 0.9227,
    "VADER is not smart, handsome, nor funny.": -0.7424,
    "At least it isn't a horrible book.": 0.431,
    "The plot was good, but the characters are uncompelling and the dialog is not great.": -0.7042,
    "Today SUX!": -0.5461,
}


def talk(*turns):
    return Dialogue("d", tuple(Turn(role, text, ("1",) * text.count(MENTION)) for role, text in turns))


def test_published_examples():
    value = sentiment(list(PUBLISHED))
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, list(PUBLISHED.values()), atol=5e-5)


def test_titles_do_not_count():
    assert sentiment([f"I saw {MENTION} today"]).tolist() == [0.0]
    with_title, without = sentiment([f"I really love {MENTION}!", "I really love !"])
    assert with_title == without > 0.5


def test_order_repeats_and_empty_texts():
    assert sentiment([]).shape == (0,)
    good, empty, bad, again, mention = sentiment(["great", "", "awful", "great", MENTION])
    assert good == again > 0 > bad
    assert empty == mention == 0


def test_shift_by_hand():
    dialogue = talk(
        (RECOMMENDER, "I hate everything"),
        (SEEKER, "great"),
        (RECOMMENDER, "try this"),
        (RECOMMENDER, "terrible I know"),
        (SEEKER, "that is awful"),
        (SEEKER, "I hate it"),
        (RECOMMENDER, "sorry"),
        (SEEKER, "fine"),
        (RECOMMENDER, "bye"),
    )
    great, poor, fine = sentiment(["great", "that is awful I hate it", "fine"])
    (shift,) = sentiment_shift([dialogue])
    assert shift.dtype == np.float32
    nan = np.nan
    np.testing.assert_allclose(shift, [nan, nan, nan, poor - great, nan, nan, fine - poor, nan, nan], atol=1e-6)
    assert shift[3] < -1 < 0.5 < shift[6]


def test_what_the_mood_before_foretells_is_taken_out():
    """The slope is that of scikit-learn's line; what is left does not go with the mood before, a plain shift does."""
    rng = np.random.default_rng(0)
    moods = ["awful", "bad", "so so", "fine", "good", "great, love it"]
    pairs = [(a, int(np.clip(a + rng.integers(-3, 4), 0, 5))) for a in rng.integers(0, 6, 200)]
    dialogues = [talk((SEEKER, moods[a]), (RECOMMENDER, "x"), (SEEKER, moods[b])) for a, b in pairs]
    before, after = (sentiment([moods[pair[side]] for pair in pairs]) for side in (0, 1))
    slope = carried_over(dialogues)
    assert slope == pytest.approx(LinearRegression().fit(before[:, None], after).coef_[0], abs=1e-6)
    assert 0.2 < slope < 0.9
    left, plain = (np.array([s[1] for s in sentiment_shift(dialogues, carried=c)]) for c in (slope, 1.0))
    np.testing.assert_allclose(left, after - slope * before, atol=1e-6)
    assert abs(np.corrcoef(before, left)[0, 1]) < 1e-5
    assert np.corrcoef(before, plain)[0, 1] < -0.2
    assert carried_over([talk((SEEKER, "alone"))]) == 0.0


def test_shift_keeps_dialogues_apart():
    a = talk((SEEKER, "good"), (RECOMMENDER, "x"), (SEEKER, "bad"))
    b = talk((SEEKER, "bad"), (RECOMMENDER, "x"), (SEEKER, "good"))
    first, second, third = sentiment_shift([a, talk((SEEKER, "alone")), b])
    assert first[1] == -third[1] < 0
    assert np.isnan(second).all()
    assert sentiment_shift([]) == []


@pytest.mark.parametrize(
    ("labels", "signs"),
    [
        (["negative", "neutral", "positive"], [-1, 0, 1]),
        (["POSITIVE", "NEGATIVE"], [1, -1]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [-1, 0, 1]),
        (["LABEL_0", "LABEL_1"], [-1, 1]),
    ],
)
def test_label_signs(labels, signs):
    assert label_signs(dict(enumerate(labels)), "x") == dict(zip(labels, signs, strict=True))


@pytest.mark.parametrize(
    "labels", [["joy", "anger"], ["positive", "other"], ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]]
)
def test_labels_that_say_nothing(labels):
    with pytest.raises(InputError, match=r"config\.signals\.sentiment: the labels of 'here' are"):
        label_signs(dict(enumerate(labels)), "here")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny RoBERTa with random weights, large enough in spread that its classes differ by text."""
    import tokenizers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("roberta")
    bpe = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(["great movie", "awful movie"] * 3, vocab_size=300, special_tokens=special)
    vocab, merges = bpe.save_model(str(folder))
    with open(vocab, encoding="utf-8") as file:
        words = json.load(file)
    with open(merges, encoding="utf-8") as file:
        pairs = [tuple(line.split()) for line in file.read().splitlines() if line and not line.startswith("#version")]
    tokenizer = transformers.RobertaTokenizer(vocab=words, merges=pairs)
    assert len(tokenizer) == len(words)
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=140, type_vocab_size=1, initializer_range=1.0, num_labels=3, pad_token_id=1,
        id2label={0: "negative", 1: "neutral", 2: "positive"}, label2id={"negative": 0, "neutral": 1, "positive": 2},
    )  # fmt: skip
    model = transformers.RobertaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_classifier_is_p_positive_less_p_negative(classifier):
    import torch

    folder, model, tokenizer = classifier
    texts = ["great movie", "awful", "an awful great movie of a movie", "great movie", "", "movie " * 300]
    expected = []
    for text in texts:
        with torch.no_grad():
            p = model(**tokenizer(text.strip(), return_tensors="pt", truncation=True, max_length=128)).logits.softmax(
                -1
            )[0]
        expected.append(float(p[2] - p[0]) if text else 0.0)
    value = sentiment(texts, str(folder))
    np.testing.assert_allclose(value, expected, atol=1e-5)
    assert np.ptp(value) > 0.05


def test_a_classifier_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match=r"^config\.signals\.sentiment: '.*none' is no folder, and a hub id needs its rev"
    ):
        sentiment(["hello"], str(tmp_path / "none"))
    monkeypatch.setattr("transformers.pipeline", lambda task, **given: pytest.fail(f"{task} {given}"))
    with pytest.raises(InputError, match="owner/name@commit"):
        sentiment(["hello"], "owner/unpinned")
    asked = {}

    def offline(repository, **given):
        asked.update(given, model=repository)
        raise OSError("we couldn't connect\nand so on")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        InputError, match=r"^config\.signals\.sentiment: no classifier could be loaded from .*'vader'"
    ) as met:
        sentiment(["hello"], ROBERTA)
    assert "\n" not in str(met.value)
    assert (asked["model"], asked["revision"]) == tuple(ROBERTA.split("@"))
    assert re.fullmatch("[0-9a-f]{40}", asked["revision"])


class Touches:
    """A pickle that makes a file when it is read as Python's own would read it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_classifier_that_is_a_pickle_runs_no_code(classifier, tmp_path):
    folder, proof = tmp_path / "pickled", tmp_path / "code ran"
    shutil.copytree(classifier[0], folder)
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Touches(proof)))
        file.writestr("archive/version", "3")
    with pytest.raises(InputError, match="no classifier could be loaded"):
        sentiment(["hello"], str(folder))
    assert not proof.exists()
    pickle.loads(pickle.dumps(Touches(proof)))
    assert proof.exists()
