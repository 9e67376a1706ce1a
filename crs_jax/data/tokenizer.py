"""Tokens of a dialogue: BPE words, six controls, and one token for each item of the catalogue.

Ids, with V words and N items: words 0..V-1, controls V..V+5 in the order of `CONTROLS`, item row i at V+6+i. User text
goes through the byte-level BPE alone, which holds no special token, so no text can produce a control or an item.

Every utterance is encoded as if a space stood before it (see `spacing`): ' movie' is one token everywhere.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from crs_jax.data import byte_bpe, spacing
from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROLS = ("<|pad|>", "<|seeker|>", "<|recommender|>", "<|rec|>", "<|say|>", "<|end|>")
WORDS = "bpe.json"
MOST_ITEMS = 10**7


class Spoken(NamedTuple):
    """One decoded turn. `role` is empty where the turn's opening was trimmed away; `items` are catalogue rows: of the
    act for the recommender, of the mentions for the seeker, each once.
    """

    role: str
    items: list[int]
    text: str


def training_texts(dialogues: Iterable[Dialogue], catalogue: Catalogue) -> Iterator[str]:
    """What the BPE is trained on: the words of the dialogues without their items, and each item's name once."""
    for dialogue in dialogues:
        for turn in dialogue.turns:
            yield turn.text.replace(MENTION, " ")
    for item in catalogue.items:
        yield item.name


class DialogueTokenizer:
    """Encodes and decodes turns.

    Attributes:
      num_words: V, the size of the BPE.
      pad, seeker, recommender, rec, say, end: ids of the controls.
      num_items: N.
      item_offset: id of item row 0, V + 6.
      vocab_size: V + 6 + N.
      word_bytes: the UTF-8 bytes of each word id; empty for `<|endoftext|>`.
      unused: word ids that no text encodes to, so that a sampler can mask them.
    """

    def __init__(self, bpe: Tokenizer, num_items: int) -> None:
        """Wraps a byte-level BPE of the `tokenizers` library that has no added tokens."""
        self._bpe = bpe
        self.num_words = bpe.get_vocab_size(with_added_tokens=False)
        self.pad, self.seeker, self.recommender, self.rec, self.say, self.end = range(
            self.num_words, self.num_words + len(CONTROLS)
        )
        self.num_items = num_items
        self.item_offset = self.num_words + len(CONTROLS)
        self.vocab_size = self.item_offset + num_items
        self.word_bytes, unused = byte_bpe.word_bytes(bpe.get_vocab(with_added_tokens=False))
        self.unused: tuple[int, ...] = tuple(unused)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, num_items: int) -> DialogueTokenizer:
        """Trains a byte-level BPE; the same texts give the same vocabulary.

        Args:
          texts: see `training_texts`.
          vocab_size: most words, the 256 bytes included. A small corpus can give fewer: see `num_words`.
          num_items: N.
        """
        return cls(byte_bpe.train(texts, vocab_size), num_items)

    @classmethod
    def gpt2(cls, path: str, num_items: int) -> DialogueTokenizer:
        """GPT-2's own BPE of 50,257 words.

        Args:
          path: folder with vocab.json and merges.txt (or encoder.json and vocab.bpe); empty: the hub, one revision.
          num_items: N.

        Raises:
          InputError: a file is missing, or is not GPT-2's.
        """
        return cls(byte_bpe.gpt2(path), num_items)

    def for_items(self, num_items: int) -> DialogueTokenizer:
        """The same words and controls before another catalogue."""
        return DialogueTokenizer(self._bpe, num_items)

    def save(self, folder: pathlib.Path, words: str = WORDS) -> None:
        """Writes dialogue_tokenizer.json and, in the `tokenizers` format, the file `words`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / words).write_text(self.words(), encoding="utf-8")
        (folder / "dialogue_tokenizer.json").write_text(json.dumps(self._facts(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: pathlib.Path, words: str = WORDS) -> DialogueTokenizer:
        """Reads what `save` wrote; `InputError` for what it did not write."""
        path = folder / "dialogue_tokenizer.json"
        facts, found = read_json(path), read_json(folder / words)
        items = facts.get("num_items")
        if type(items) is not int or not 0 <= items <= MOST_ITEMS:
            raise InputError(f"{path}: num_items is {items!r:.80}, expected a number of items, at most {MOST_ITEMS:,}")
        try:
            # The file for transformers also lists the control tokens; here text must not match them.
            tokenizer = cls(byte_bpe.rebuilt(found), items)
        except Exception as error:  # the library raises a bare Exception
            reason = f"{type(error).__name__}: {error!s:.200}"
            raise InputError(
                f"{folder / words}: not a saved tokenizer ({reason}); remove {folder} and run again"
            ) from None
        if facts != tokenizer._facts():
            raise InputError(f"{path}: written by another version; remove the folder and run again")
        return tokenizer

    def _facts(self) -> dict[str, Any]:
        return {"num_words": self.num_words, "num_items": self.num_items, "controls": list(CONTROLS)}

    def words(self) -> str:
        """The BPE in the `tokenizers` format."""
        return self._bpe.to_str()

    def encode_text(self, text: str) -> list[int]:
        """Word ids of the text exactly as it stands (no space is added); every id is below `num_words`."""
        return self._bpe.encode(byte_bpe.clean(text), add_special_tokens=False).ids

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text of word ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self.word_bytes[i] for i in ids]).decode("utf-8", "replace")

    def text_of(self, tokens: Iterable[int]) -> bytes:
        """The bytes that the word ids among the tokens spell, the space before each word with it; items and controls
        are none.
        """
        return b"".join([self.word_bytes[token] for token in tokens if token < self.num_words])

    def encode_turn(self, turn: Turn, catalogue: Catalogue, act_items: int, max_tokens: int | None = None) -> list[int]:
        """Tokens of one turn.

        A seeker's turn is `<|seeker|> words and items <|end|>`; a recommender's is `<|recommender|> <|rec|> items
        <|say|> words and items <|end|>`, the act being its distinct items in order of first mention.

        Args:
          act_items: M, most items of an act; mentions of further items are written out as title words.
          max_tokens: most tokens after the opening (`<|seeker|>`, or `<|recommender|> <|rec|>`): the act, words and
            `<|end|>`. Words are cut at the end; the act and `<|end|>` stay.
        """
        act, pieces = self._pieces(turn, catalogue, act_items)
        return self._assemble(turn.role, act, pieces, self.encode_text, max_tokens)

    def encode_dialogues(
        self, dialogues: Iterable[Dialogue], catalogue: Catalogue, act_items: int, max_tokens: int | None = None
    ) -> list[list[list[int]]]:
        """`encode_turn` of every turn, as dialogue -> turn -> tokens; several times faster than one by one."""
        laid = [[(t.role, *self._pieces(t, catalogue, act_items)) for t in dialogue.turns] for dialogue in dialogues]
        texts = {p: None for turns in laid for _, _, pieces in turns for p in pieces if isinstance(p, str)}
        encodings = self._bpe.encode_batch_fast([byte_bpe.clean(text) for text in texts], add_special_tokens=False)
        ids = dict(zip(texts, [encoding.ids for encoding in encodings], strict=True))
        return [[self._assemble(*turn, ids.__getitem__, max_tokens) for turn in turns] for turns in laid]

    def decode_reply(self, tokens: Iterable[int], catalogue: Catalogue) -> tuple[list[int], str]:
        """The act's item rows and the text, titles written out, of a recommender's turn.

        Args:
          tokens: with or without the opening `<|recommender|> <|rec|>`, with or without `<|end|>` and padding; what
            stands after the first `<|end|>` or pad is left out.
        """
        body = [int(token) for token in tokens]
        if body[:1] == [self.recommender]:
            body = body[1:]
        return self._decode_recommender(self._until_end(body[1:] if body[:1] == [self.rec] else body), catalogue)

    def decode_turn(self, tokens: Iterable[int], catalogue: Catalogue) -> Turn:
        """The message that a whole turn says, `<|end|>` and padding left out: what `encode_turn` makes such tokens of.

        Items of an act that its words do not name stand at the end of the text: what is proposed is named.
        """
        body = self._until_end([int(token) for token in tokens])
        role, act, words = SEEKER, list[int](), body[1:]
        if body[:1] == [self.recommender]:
            role, at = RECOMMENDER, body.index(self.say) if self.say in body else len(body)
            act, words = self._rows(body[:at]), body[at + 1 :]
        rows = [token - self.item_offset for token in words if token >= self.item_offset]
        unsaid = [row for row in act if row not in rows]
        text = self._text(words, lambda _: MENTION)
        named = tuple(catalogue.items[row].item_id for row in (*rows, *unsaid))
        return Turn(role, " ".join([*([text] if text else []), *(MENTION for _ in unsaid)]), named)

    def decode_context(self, tokens: Iterable[int], catalogue: Catalogue) -> list[Spoken]:
        """The turns of a context, oldest first; padding and an opening without a reply are left out."""
        turns: list[list[int]] = [[]]
        for token in map(int, tokens):
            if token in (self.seeker, self.recommender):
                turns.append([token])
            elif token != self.pad:
                turns[-1].append(token)
        out = []
        for turn in turns:
            body = self._until_end(turn)
            if body[:1] == [self.recommender]:
                if body[1:] not in ([], [self.rec]):
                    out.append(Spoken(RECOMMENDER, *self.decode_reply(body, catalogue)))
            elif body[:1] == [self.seeker]:
                out.append(Spoken(SEEKER, self._rows(body), self._text(body[1:], self._name(catalogue))))
            elif body:
                if self.say in body:  # a recommender's turn, its opening trimmed away
                    out.append(Spoken(RECOMMENDER, *self._decode_recommender(body, catalogue)))
                else:
                    out.append(Spoken("", self._rows(body), self._text(body, self._name(catalogue))))
        return out

    def _pieces(self, turn: Turn, catalogue: Catalogue, act_items: int) -> tuple[list[int], list[int | str]]:
        """Rows of the act (empty for a seeker), and words and item rows in order."""
        mentions: list[int | str] = list(catalogue.rows(turn.items))
        act: list[int] = []
        if turn.role == RECOMMENDER:
            act = list(dict.fromkeys(row for row in mentions if isinstance(row, int)))[:act_items]
            mentions = [row if row in act else catalogue.items[int(row)].name for row in mentions]
        return act, spacing.lay_out(turn.text.split(MENTION), mentions)

    def _assemble(
        self,
        role: str,
        act: Sequence[int],
        pieces: Sequence[int | str],
        encode: Callable[[str], list[int]],
        max_tokens: int | None,
    ) -> list[int]:
        body: list[int] = []
        for piece in pieces:
            body += [self.item_offset + piece] if isinstance(piece, int) else encode(piece)
        opening, head = [self.seeker], []
        if role == RECOMMENDER:
            opening, head = [self.recommender, self.rec], [*(self.item_offset + row for row in act), self.say]
        if max_tokens is not None:
            budget = max_tokens - len(head) - 1
            if budget < 0:
                raise InputError(
                    f"--config.data.reply_tokens={max_tokens}: an act of {len(act)} items, <|say|> and <|end|> need "
                    f"{len(head) + 1}"
                )
            if len(body) > budget:
                body = self.whole_characters(body[:budget])
        return [*opening, *head, *body, self.end]

    def whole_characters(self, body: list[int]) -> list[int]:
        """`body` without the last word ids where they break off within a character."""
        while body and body[-1] < self.num_words:
            tail = b"".join([self.word_bytes[i] if i < self.num_words else b"" for i in body[-4:]])
            try:
                tail.lstrip(bytes(range(0x80, 0xC0))).decode("utf-8")
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    body = body[:-1]
                    continue
            break
        return body

    def _until_end(self, tokens: list[int]) -> list[int]:
        stops = [tokens.index(stop) for stop in (self.end, self.pad) if stop in tokens]
        return tokens[: min(stops)] if stops else tokens

    def _rows(self, tokens: Iterable[int]) -> list[int]:
        return list(dict.fromkeys(token - self.item_offset for token in tokens if token >= self.item_offset))

    def _decode_recommender(self, body: list[int], catalogue: Catalogue) -> tuple[list[int], str]:
        at = body.index(self.say) if self.say in body else len(body)
        return self._rows(body[:at]), self._text(body[at + 1 :], self._name(catalogue))

    def _name(self, catalogue: Catalogue) -> Callable[[int], str]:
        return lambda row: catalogue.items[row].name

    def _text(self, tokens: Iterable[int], shown: Callable[[int], str]) -> str:
        """Words without `MENTION`, which only items may be, and items as they are `shown`."""
        pieces: list[tuple[bool, str]] = []
        run: list[int] = []
        for token in tokens:
            if token < self.num_words:
                run.append(token)
            elif token >= self.item_offset:
                if run:
                    pieces.append((False, self.decode_text(run).replace(MENTION, "")))
                    run = []
                pieces.append((True, shown(token - self.item_offset)))
        words = [(False, self.decode_text(run).replace(MENTION, ""))] if run else []
        return spacing.join([*pieces, *words])
