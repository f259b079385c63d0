"""Texts to token ids: the model's own tokenizer, through a library that encodes its vocabulary several times faster.

A byte-level BPE vocabulary (Qwen, Llama 3, GPT-2) gives the same ids in tiktoken as in the tokenizers library where
five things hold. Each is looked at before it is relied on:

1. the vocabulary is one that tiktoken's merging rule fits (`_ranks`): checked whole, when the encoder is made;
2. added tokens are found alike (`_added_tokens`): checked whole, when the encoder is made;
3. the text is in the tokenizer's normal form: checked for every text;
4. both engines for regular expressions class its characters alike: checked once for every character beyond ASCII;
5. both give the same ids for the first texts: checked when they come.

Where 1, 2 or 5 fails, every text goes to the model's own tokenizer, and where 3 or 4 fails, that text does. The record
says which library encoded, and why it was not the fast one.
"""

import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import tiktoken

from essence.data.truncation import Tokens

NormalForm = Literal["NFC", "NFD", "NFKC", "NFKD"]
NORMAL_FORMS: tuple[NormalForm, ...] = get_args(NormalForm)
COMPARED_TEXTS = 64
"""Of the first batch, encoded by both libraries."""
PROBES = ("a{0}a", " {0} ", "1{0}1", "\n{0}\n", "'{0}", "{0}{0}\n", "-{0} \n{0}a", "{0}1 a")
"""Contexts that distinguish a letter, a digit, white space, a line end and punctuation in a pre-tokeniser's pattern."""


class NotTheSame(Exception):
    """Why tiktoken cannot replace a tokenizer."""


@dataclass(frozen=True)
class Text:
    """What is to be encoded."""

    text: str
    marked: tuple[int, ...] = ()
    """Indices of characters whose tokens are asked for; -1 = of none."""


@dataclass(frozen=True)
class Encoded:
    """What became of a text."""

    ids: Tokens
    """Token ids, int32, shape (L,)."""
    marked: tuple[int, ...]
    """Index of the token that holds each marked character; -1 where none was marked, or no token holds it."""


class Encoder:
    """Encodes batches of texts; ids are always those of the model's own tokenizer."""

    def __init__(self, backend: Any, threads: int) -> None:
        """From a `tokenizers.Tokenizer` as transformers loaded it. `threads` changes speed only."""
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # read by the tokenizers library at its first batch
        # What a tokenizer's file may say of these is for models that read texts as they come; rows are encoded whole.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._fast: FastEncoding | None = None
        self._compared = False
        self.reason = ""
        """Why tiktoken is not used; empty while it is."""
        try:
            self._fast = FastEncoding(backend)
        except NotTheSame as reason:
            self.reason = str(reason)

    @property
    def library(self) -> str:
        """What encodes, with its version: `tiktoken 0.14.0`."""
        name = "tiktoken" if self._fast else "tokenizers"
        return f"{name} {version(name)}"

    def start(self, texts: Sequence[Text]) -> Callable[[], list[Encoded]]:
        """Begin to encode; what is returned waits for the outcome. Added tokens in a text are tokens, none is added."""
        if self._fast and not self._compared:
            self._compare(texts[:COMPARED_TEXTS])
        fast = self._fast
        if fast is None:
            return self._pool.submit(self._encode_slowly, texts).result
        quick = [fast.takes(text.text) for text in texts]
        slow = self._pool.submit(self._encode_slowly, [t for t, may in zip(texts, quick, strict=True) if not may])
        encoded = self._pool.map(fast.encode, [t for t, may in zip(texts, quick, strict=True) if may])

        def finish() -> list[Encoded]:
            others = iter(slow.result())
            return [next(encoded) if may else next(others) for may in quick]

        return finish

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _encode_slowly(self, texts: Sequence[Text]) -> list[Encoded]:
        # encode_batch_fast keeps no offsets, so the marks need encode_batch.
        encodings = self._backend.encode_batch([t.text for t in texts], add_special_tokens=False) if texts else []
        return [
            Encoded(np.array(encoding.ids, np.int32), tuple(_token_at(encoding, place) for place in text.marked))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _compare(self, texts: Sequence[Text]) -> None:
        """Both libraries on the first texts; the fast one goes where they differ."""
        assert self._fast
        self._compared = True
        for number, (text, slow) in enumerate(zip(texts, self._encode_slowly(texts), strict=True)):
            fast = self._fast.encode(text) if self._fast.takes(text.text) else slow
            if not np.array_equal(fast.ids, slow.ids):
                self._fast, self.reason = None, f"tiktoken gives other ids for text {number} of the first batch"
                return


def _token_at(encoding: Any, place: int) -> int:
    """Index of the token that holds a character, -1 where none does."""
    token = None if place < 0 else encoding.char_to_token(place)
    return -1 if token is None else int(token)


class Normalizer(TypedDict, total=False):
    """How tokenizer.json brings texts into a normal form: one way, or a sequence of them."""

    type: str
    normalizers: list["Normalizer"]


class PreTokenizer(TypedDict, total=False):
    """How tokenizer.json cuts texts into words."""

    pretokenizers: list[dict[str, object]]
    """Steps, each with options of its own `type`."""


class AddedToken(TypedDict):
    """A token that is found before anything else."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


class BpeModel(TypedDict, total=False):
    """Vocabulary and merges, where `type` is BPE."""

    type: str
    dropout: float | None
    unk_token: str | None
    continuing_subword_prefix: str | None
    end_of_word_suffix: str | None
    byte_fallback: bool
    vocab: dict[str, int]
    merges: list[str] | list[list[str]]
    """Pairs of tokens; as one text with a space between in files of earlier versions of the library."""


class TokenizerFile(TypedDict):
    """tokenizer.json, as far as it decides on ids; the tokenizers library has written it."""

    normalizer: Normalizer | None
    pre_tokenizer: PreTokenizer | None
    added_tokens: list[AddedToken]
    model: BpeModel


class FastEncoding:
    """tiktoken with the vocabulary, the pattern and the added tokens of a byte-level BPE tokenizer."""

    def __init__(self, backend: Any) -> None:
        """From a `tokenizers.Tokenizer`; NotTheSame when ids could differ."""
        described: TokenizerFile = json.loads(backend.to_str())
        self._backend = backend
        self._forms = _normal_forms(described["normalizer"])
        added = _added_tokens(described)
        ranks = _ranks(described["model"], backend)
        self._encoding = _make_encoding(_pattern(described["pre_tokenizer"]), ranks, added)
        self._token_bytes = np.zeros(max([*ranks.values(), *added.values()]) + 1, np.int32)
        for token, number in [*ranks.items(), *((name.encode(), number) for name, number in added.items())]:
            self._token_bytes[number] = len(token)
        self._alike: set[str] = set()
        self._unlike: set[str] = set()

    def takes(self, text: str) -> bool:
        """True when tiktoken is known to give this text the tokenizer's own ids."""
        if text.isascii():
            return True
        if not all(unicodedata.is_normalized(form, text) for form in self._forms):
            return False
        characters = {character for character in set(text) - self._alike if not character.isascii()}
        for character in characters - self._unlike:
            (self._alike if self._is_alike(character) else self._unlike).add(character)
        return not characters & self._unlike

    def encode(self, text: Text) -> Encoded:
        """Other threads run meanwhile."""
        ids = self._ids(text.text)
        if all(place < 0 for place in text.marked):
            return Encoded(ids, (-1,) * len(text.marked))
        # In normal form, the bytes of the tokens are those of the text.
        ends = np.cumsum(self._token_bytes[ids])
        places = (-1 if place < 0 else len(text.text[:place].encode()) for place in text.marked)
        return Encoded(ids, tuple(-1 if p < 0 else int(np.searchsorted(ends, p, side="right")) for p in places))

    def _ids(self, text: str) -> Tokens:
        ids: Tokens = self._encoding.encode_to_numpy(text, allowed_special="all").view(np.int32)
        return ids

    def _is_alike(self, character: str) -> bool:
        probes = [probe.format(character) for probe in PROBES]
        normal = [p for p in probes if all(unicodedata.is_normalized(form, p) for form in self._forms)]
        expected = self._backend.encode_batch_fast(normal, add_special_tokens=False)
        return bool(normal) and all(self._ids(p).tolist() == e.ids for p, e in zip(normal, expected, strict=True))


def _make_encoding(pattern: str, ranks: dict[bytes, int], added: dict[str, int]) -> tiktoken.Encoding:
    try:
        return tiktoken.Encoding("model", pat_str=pattern, mergeable_ranks=ranks, special_tokens=added)
    except ValueError as error:
        raise NotTheSame(f"tiktoken refuses the tokenizer's pattern or vocabulary ({error})") from None


def _normal_forms(normalizer: Normalizer | None) -> list[NormalForm]:
    """The Unicode normal forms that a tokenizer brings texts into."""
    if normalizer is None:
        return []
    parts = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    forms = [form for part in parts for form in NORMAL_FORMS if form == part["type"]]
    if len(forms) < len(parts):
        raise NotTheSame(f"the tokenizer normalises with {', '.join(part['type'] for part in parts)}")
    return forms


def _pattern(pre_tokenizer: PreTokenizer | None) -> str:
    """The pattern of a pre-tokenizer that cuts at its matches and then maps bytes to characters."""
    match pre_tokenizer.get("pretokenizers", []) if pre_tokenizer else []:
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    raise NotTheSame("the tokenizer's pre-tokenizer is not one pattern and then bytes")


def _added_tokens(described: TokenizerFile) -> dict[str, int]:
    """Added tokens and their ids.

    tiktoken finds them anywhere in a text, before anything else; so do they here, unless a flag says otherwise. Where
    one begins with another, the longer one would not be sure to win.
    """
    added = {entry["content"]: int(entry["id"]) for entry in described["added_tokens"]}
    for entry in described["added_tokens"]:
        flags = {
            "single_word": entry["single_word"],
            "lstrip": entry["lstrip"],
            "rstrip": entry["rstrip"],
            "normalized": entry["normalized"] and bool(described["normalizer"]),
        }
        given = [flag for flag, is_set in flags.items() if is_set]
        if given:
            raise NotTheSame(f"added token {entry['content']!r} has {given[0]}")
    for first, second in pairwise(sorted(added)):
        if second.startswith(first):
            raise NotTheSame(f"added token {second!r} begins with {first!r}")
    return added


def _ranks(model: BpeModel, backend: Any) -> dict[bytes, int]:
    """Token bytes and ids of a BPE whose merges tiktoken repeats from the ids alone.

    tiktoken merges two neighbours when their joined bytes are a token, the smallest id first; the tokenizers library
    merges the listed pairs in their order. Both are the same when ids grow along the list, every token but the bytes is
    the outcome of one listed pair of tokens with smaller ids, and the tokenizer encodes every token's own text as that
    token: then, at the moment when a token can be made, its listed pair is all that is left of it.
    """
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise NotTheSame(f"the tokenizer's model has {key}")
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise NotTheSame("the tokenizer's model is not a byte-level BPE")
    vocabulary = model["vocab"]
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made = [vocabulary[first + second] for first, second in pairs]
    grows = all(a < b for a, b in pairwise(made))
    smaller = all(max(vocabulary[a], vocabulary[b]) < whole for (a, b), whole in zip(pairs, made, strict=True))
    if not (grows and smaller):
        raise NotTheSame("the ids of the vocabulary do not follow its merges")
    of_character = {character: byte for byte, character in _byte_characters().items()}
    try:
        ranks = {bytes(of_character[c] for c in token): number for token, number in vocabulary.items()}
    except KeyError:
        raise NotTheSame("the vocabulary is not one of bytes") from None
    if sum(len(token) == 1 for token in ranks) != len(of_character) or len(ranks) != len(of_character) + len(made):
        raise NotTheSame("the vocabulary is not the 256 bytes and what its merges make")
    if any([t.id for t in backend.model.tokenize(token)] != [number] for token, number in vocabulary.items()):
        raise NotTheSame("the vocabulary has tokens that its own merges never make")
    return ranks


def _byte_characters() -> dict[int, str]:
    """Byte -> its character in a byte-level vocabulary: itself where it prints, else from 256 on."""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(256 + place) for place, byte in enumerate(others)}
