"""The fast encoder gives the ids of the model's own tokenizer, or steps aside and says why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="PyTorch is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from essence.data.encode import Encoder, Text  # noqa: E402
from essence.models.loading import load_tokenizer  # noqa: E402
from essence.stages.tiny.toy_tokenizer import learn_tokenizer  # noqa: E402

MARKUP = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|endoftext|>", "\\boxed{", "'s", "'LL", " ", "\n", "7"]
ODD = [
    "\u0338",
    "\u0301",
    "e\u0301",
    "\u212b",
    "ſ",
    "\u0085",
    "\u180e",
    "\u200b",
    "\ufeff",
    "𝟙",
    "½",
    "한",
    "각",
    "\U0001f9d1",
]
texts = st.lists(st.text() | st.sampled_from(MARKUP + ODD), max_size=12).map("".join)


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return Encoder(learn_tokenizer(), 2)


@pytest.fixture(scope="module")
def qwen(assets: Path) -> tuple[Any, Encoder]:
    backend = load_tokenizer(assets / "tokenizer").backend_tokenizer
    return backend, Encoder(backend, 2)


def same_as_the_tokenizer(backend: Any, encoder: Encoder, batch: list[str]) -> None:
    marks = [len(text) // 2 if text else -1 for text in batch]
    found = encoder.start([Text(text, (mark, -1)) for text, mark in zip(batch, marks, strict=True)])()
    for text, mark, encoded in zip(batch, marks, found, strict=True):
        expected = backend.encode(text, add_special_tokens=False)
        assert encoded.ids.dtype == np.int32
        assert encoded.ids.tolist() == expected.ids
        token = None if mark < 0 else expected.char_to_token(mark)  # None: a character that normalising took away
        assert encoded.marked == (-1 if token is None else token, -1)


@pytest.mark.assets
def test_the_real_vocabulary_is_encoded_by_tiktoken(qwen: tuple[Any, Encoder]) -> None:
    backend, encoder = qwen
    assert encoder.library.startswith("tiktoken")
    assert encoder.reason == ""
    text = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    ids = [151644, 872, 198, 17, 10, 17, 30, 151645, 198, 151644, 77091, 198, 151667, 198]
    assert encoder.start([Text(text)])()[0].ids.tolist() == ids
    same_as_the_tokenizer(backend, encoder, [text, "Hello world", "12345", ""])


@pytest.mark.assets
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(texts, max_size=3))
def test_any_unicode_under_the_real_vocabulary(qwen: tuple[Any, Encoder], batch: list[str]) -> None:
    backend, encoder = qwen
    same_as_the_tokenizer(backend, encoder, batch)
    assert encoder.library.startswith("tiktoken")


@settings(deadline=None, max_examples=300)
@given(batch=st.lists(texts, max_size=3))
def test_any_unicode_under_a_small_vocabulary(tiny: Encoder, batch: list[str]) -> None:
    same_as_the_tokenizer(learned(), tiny, batch)
    assert tiny.library.startswith("tiktoken")


LEARNED: list[Any] = []


def learned() -> Any:
    LEARNED[:] = LEARNED or [learn_tokenizer()]
    return LEARNED[0]


def test_what_a_tokenizer_s_file_says_of_padding_and_truncation_does_not_touch_rows() -> None:
    """A training script that saved its tokenizer may have left both in it; rows are encoded whole."""
    plain, saved = learn_tokenizer(), learn_tokenizer()
    saved.enable_truncation(4)
    saved.enable_padding(length=12)
    batch = ["1+2=3 and so on, and so on", "7", "e\u0338 is read by the tokenizer itself"]
    same_as_the_tokenizer(plain, Encoder(saved, 1), batch)


def test_a_mark_before_a_combining_character(tiny: Encoder) -> None:
    """Text beside an added token is not in normal form with it: the tokenizer itself must encode such a text."""
    same_as_the_tokenizer(learned(), tiny, ["<think>\u0338 a", "a<think>\u0301\n", "e\u0301</think>"])


def changed(change: Any) -> Encoder:
    described = json.loads(learned().to_str())
    change(described)
    return Encoder(tokenizers.Tokenizer.from_str(json.dumps(described)), 1)


def swap_last_merges(d: dict[str, Any]) -> None:
    d["model"]["merges"][-2:] = d["model"]["merges"][:-3:-1]


def rename(d: dict[str, Any]) -> None:
    d["added_tokens"][1]["content"] = "<think>er"


def unreachable(d: dict[str, Any]) -> None:
    """A merge that an earlier one never lets happen: of `ABC`, `AB` is always made first, never `BC`."""
    vocabulary, merges = d["model"]["vocab"], d["model"]["merges"]
    for pair in (["A", "B"], ["B", "C"], ["A", "BC"]):
        merges.append(pair)
        vocabulary["".join(pair)] = max([*vocabulary.values(), *(t["id"] for t in d["added_tokens"])]) + 1


CHANGES = [
    (swap_last_merges, "the ids of the vocabulary do not follow its merges"),
    (lambda d: d["added_tokens"][3].update(lstrip=True), "added token '<think>' has lstrip"),
    (lambda d: d["added_tokens"][3].update(normalized=True), "added token '<think>' has normalized"),
    (rename, "added token '<think>er' begins with '<think>'"),
    (lambda d: d["normalizer"].update(type="Lowercase"), "normalises with Lowercase"),
    (lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True), "not one pattern and then bytes"),
    (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "not one pattern and then bytes"),
    (lambda d: d["model"].update(dropout=0.5), "has dropout"),
    (unreachable, "tokens that its own merges never make"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_what_could_give_other_ids_is_left_to_the_tokenizer(change: Any, reason: str) -> None:
    encoder = changed(change)
    assert encoder.library.startswith("tokenizers")
    assert reason in encoder.reason
    found = encoder.start([Text("What is 12+34?"), Text("<think>ABC</think>"), Text("")])()
    expected = encoder._backend.encode_batch(["What is 12+34?", "<think>ABC</think>", ""], add_special_tokens=False)
    if "dropout" not in reason:
        assert [e.ids.tolist() for e in found] == [e.ids for e in expected]


def test_other_ids_in_the_first_batch_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(learned(), 1)
    assert encoder._fast
    monkeypatch.setattr(encoder._fast, "_encoding", wrong_encoding(encoder._fast._encoding))
    same_as_the_tokenizer(learned(), encoder, ["plain", "<think>\n12</think>"])
    assert encoder.reason == "tiktoken gives other ids for text 0 of the first batch"
    assert encoder.library.startswith("tokenizers")


def wrong_encoding(encoding: Any) -> Any:
    """A pattern that cuts elsewhere."""
    import tiktoken

    return tiktoken.Encoding(
        "wrong", pat_str=r"[\s\S]", mergeable_ranks=encoding._mergeable_ranks, special_tokens=encoding._special_tokens
    )
