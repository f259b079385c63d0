"""The whole way from rows to labels against the released rules in plain Python, and properties for any text.

The plain rules are those of the released code in its own order: render, tokenise, truncate, find the markers, make the
labels. Lists and loops only; nothing of the kit is called.
"""

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.stage_inputs import context
from support.tokenize_settings import tokenize_settings

pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from essence.data.reasons import Exchange  # noqa: E402
from essence.data.selection import SectionBounds, select  # noqa: E402
from essence.data.token_table import TokenRow, TokenTable  # noqa: E402
from essence.data.truncation import Example, SkipReason, make_examples  # noqa: E402
from essence.settings import ViewSettings  # noqa: E402
from essence.stages import tokenize  # noqa: E402
from essence.stages.tiny.toy_tokenizer import TURN_END, write_tokenizer  # noqa: E402
from support.some_resources import some_view  # noqa: E402

TEMPLATES = ["qwen3_chat_template.jinja", "qwen3_chat_template_2025-04.jinja"]
SECTIONS = ["a", "p+a", "cot", "cot+a", "p+cot", "p+cot+a"]
SPANS = ["left", "middle", "right", "right-with-context", "cot-lead"]
PROPORTIONS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
THINK, END_THINK, TURN_STOP, TEXT_STOP, IGNORED = 151667, 151668, 151645, 151643, -100
REPLACED = [
    ("<|begin_of_solution|>\n\n", ""),
    ("\n\n<|end_of_solution|>", ""),
    ("<|begin_of_thought|>", "<think>"),
    ("<|end_of_thought|>", "</think>"),
]
PUBLISHED_ROWS = "a94f7a8b95d0f0d74e224b4f94828196f5116d624a46d52fbb78557dfd3ddfb8"
"""Of the ids of the two, as int32."""
Plain = tuple[list[int], list[int]]
"""Token ids and labels."""


def generated_rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of all sizes, with mathematics, other scripts, accents in both forms, emoji and odd white space."""
    drawn = random.Random(3)
    pieces = [
        "let",
        " x^2",
        " = 12",
        "34.5",
        "\n\n",
        "  ",
        "\t",
        "∑",
        " naïve",
        " nai\u0308ve",
        "한국어",
        " 数学",
        "🙂",
        "'s",
    ]
    pieces += [" \\frac{1}{2}", " \\boxed{7}", "<|im_end|>", "Wait", ",", ".\r\n", "\u00a0", "x̄", " عدد"]
    for number in range(count):
        prompt, thought, answer = ("".join(drawn.choices(pieces, k=drawn.choice([1, 3, 40]))) for _ in range(3))
        text = f"<|begin_of_thought|>{thought}<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{answer}."
        yield {
            "system": "x",
            "conversations": [
                {"from": "user", "value": f"Problem {number}: {prompt}"},
                {"from": "assistant", "value": text + "\n\n<|end_of_solution|>"},
            ],
        }


def real_rows(assets: Path) -> Iterator[dict[str, Any]]:
    for name in ("bespoke_stratos_17k.real2.jsonl", "sky_t1_format.real_traces.jsonl"):
        for line in (assets / "traces" / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "conversations" not in row:  # the trace alone, with irregular newlines around its markers
                texts = {"user": row.get("user_value", "What is it?"), "assistant": row["assistant_value"]}
                row = {"conversations": [{"from": role, "value": text} for role, text in texts.items()]}
            yield row


def truncated(items: list[Any], p: float, span: str) -> list[Any]:
    """As released: the first, the middle or the last `max(1, int(L * p))`."""
    kept = max(1, int(len(items) * p))
    if span == "left":
        return items[:kept]
    if span == "right":
        return items[len(items) - kept :]
    start = (len(items) - kept) // 2
    return items[start : start + kept]


def sections_of(ids: list[int]) -> list[str]:
    """Section of each token, by the first markers in `ids`; without a closing marker the thought goes on to the end."""
    names, section = [], "p"
    for token in ids:
        if token == THINK and section == "p":
            section = "cot"
        names.append(section)
        if token == END_THINK and section == "cot":
            section = "a"
    return names


def labelled(ids: list[int], names: list[str], supervised: str, pad: int) -> Plain:
    """Labels as released: the padding token is masked, `cot` and `p+cot` take one token of the answer too."""
    labels = []
    for place, (token, name) in enumerate(zip(ids, names, strict=True)):
        wanted = name in supervised.split("+")
        if supervised in ("cot", "p+cot") and name == "a" and place > 0 and names[place - 1] == "cot":
            wanted = True
        labels.append(token if wanted and token != pad and place > 0 else IGNORED)
    return ids, labels


def released(ids: list[int], p: float, span: str, supervised: str, pad: int) -> Plain:
    """Truncate, then find the markers; a half that lost its markers keeps the sections it was cut from (trap 10)."""
    names = sections_of(truncated(ids, p, span)) if span == "left" else truncated(sections_of(ids), p, span)
    return labelled(truncated(ids, p, span), names, supervised, pad)


def view(lsp: float, span: str, sections: str, **changes: bool) -> ViewSettings:
    flags = {"cot_includes_next_token": True, "supervise_end_of_sequence": False, "keep_context": False, **changes}
    # tests/distill/test_released_protocol_labels.py has the first token of a span.
    return some_view(lsp=lsp, span=span, sections=sections, **flags)


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenised(
    request: pytest.FixtureRequest, assets: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[list[int]], TokenTable]:
    """Ids of every row by the plain way, and the stage's output."""
    root = tmp_path_factory.mktemp("released")
    model, rows_folder = root / "tokenizer" / "model", root / "rows" / "rows"
    shutil.copytree(assets / "tokenizer", model)
    shutil.copy(assets / "tokenizer" / request.param, model / "chat_template.jinja")
    described = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    del described["chat_template"]  # a model has one
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    rows_folder.mkdir(parents=True)
    rows = [*real_rows(assets), *generated_rows(24)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (rows_folder / "rows.jsonl").write_text(text, encoding="utf-8")
    tokenizer, plain = transformers.AutoTokenizer.from_pretrained(model), []
    assert tokenizer.chat_template == (assets / "tokenizer" / request.param).read_text(encoding="utf-8")
    for row in rows:
        user, assistant = (turn["value"] for turn in row["conversations"])
        for old, new in REPLACED:
            assistant = assistant.replace(old, new)
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        rendered = tokenizer.apply_chat_template(
            turns, tokenize=False, enable_thinking=True, add_generation_prompt=True
        )
        plain.append(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    asked = tokenize_settings(faulty_rows="keep", max_rejected_share=0.0)
    outcome = tokenize.run(asked, context(root / "stage", rows=root / "rows", tokenizer=root / "tokenizer"))
    assert outcome.executed.encoder.startswith("tiktoken")
    return plain, TokenTable(root / "stage" / "partial" / "tokens.arrow")


@pytest.mark.assets
def test_tokens_are_those_of_one_call_a_row(tokenised: tuple[list[list[int]], TokenTable]) -> None:
    plain, table = tokenised
    assert [ids.tolist() for ids in table.rows(np.arange(len(table)))] == plain


@pytest.mark.assets
def test_published_rows_have_their_published_lengths(tokenised: tuple[list[list[int]], TokenTable]) -> None:
    """Two Bespoke rows: 1,861 and 1,151 tokens as published; both templates render them alike."""
    _, table = tokenised
    assert table.lengths[:2].tolist() == [1861, 1151]
    rows = list(table.rows(np.arange(2)))
    assert hashlib.sha256(b"".join(ids.astype("<i4").tobytes() for ids in rows)).hexdigest() == PUBLISHED_ROWS
    for index, ids in enumerate(rows):
        assert ids[:2].tolist() == [151644, 872]
        assert ids[-5:].tolist() == [TURN_STOP, 198, 151644, 77091, 198]
        assert (ids[table.bounds.think_start[index]], ids[table.bounds.think_end[index]]) == (THINK, END_THINK)
        assert np.count_nonzero(ids == END_THINK) == 1


CUTS = [*itertools.product(PROPORTIONS, ["left"]), *itertools.product([0.5], ["middle", "right"])]


@pytest.mark.assets
@pytest.mark.parametrize("pad", [TURN_STOP, TEXT_STOP])
@pytest.mark.parametrize("sections", SECTIONS)
def test_every_token_and_label_is_as_released(
    tokenised: tuple[list[list[int]], TokenTable], sections: str, pad: int
) -> None:
    plain, table = tokenised
    compared = 0
    for p, span in CUTS:
        found = table.examples(np.arange(len(table)), view(p, span, sections), pad)
        for ids, ours in zip(plain, found, strict=True):
            if THINK not in ids or END_THINK not in ids:
                assert ours is SkipReason.NO_MARKER
                continue
            expected_ids, expected_labels = released(ids, p, span, sections, pad)
            if all(label == IGNORED for label in expected_labels):
                assert ours is SkipReason.NOTHING_SUPERVISED
                continue
            assert isinstance(ours, Example)
            assert ours.input_ids.tolist() == expected_ids
            assert np.where(ours.supervised, ours.input_ids, IGNORED).tolist() == expected_labels
            compared += 1
    assert compared > len(plain)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tokenize.Renderer]:
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    write_tokenizer(folder, TURN_END)
    with closing(tokenize.Renderer(folder, True, 1)) as made:
        yield made


any_text = st.lists(st.text() | st.sampled_from(["<think>", "</think>", "<|im_end|>", "\\boxed{1}"]), max_size=6).map(
    "".join
)
proportions = st.floats(0.0, 1.0, exclude_min=True)
any_view = st.builds(
    view,
    proportions,
    st.sampled_from(SPANS),
    st.sampled_from(SECTIONS),
    cot_includes_next_token=st.booleans(),
    supervise_end_of_sequence=st.booleans(),
    keep_context=st.booleans(),
)


def render(renderer: tokenize.Renderer, user: str, thought: str, answer: str) -> TokenRow:
    exchange = Exchange(user, f"<think>{thought}</think>{answer}")
    return next(renderer.tokenised(iter([(0, exchange)])))[0]


def example(row: TokenRow, settings: ViewSettings) -> Example | SkipReason:
    bounds = SectionBounds.of(row.input_ids.size, row.think_start, row.think_end)
    return next(make_examples(np.array([0]), [row.input_ids], bounds, settings, 1))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(any_text, any_text, any_text, any_view)
def test_any_text_gives_a_view_inside_its_row(
    renderer: tokenize.Renderer, user: str, thought: str, answer: str, asked: ViewSettings
) -> None:
    row = render(renderer, user, thought, answer)
    length, start, end = row.input_ids.size, row.think_start, row.think_end
    found = example(row, asked)
    if not 0 <= start <= end:
        assert found in (SkipReason.NO_MARKER, SkipReason.MARKERS_OUT_OF_ORDER)
        return
    windows = select(SectionBounds.of(length, start, end), asked)
    first, label, stop = windows.first_read[0], windows.first_label[0], windows.stop[0]
    assert 0 <= first <= label < stop <= length
    if asked.span == "cot-lead":
        assert stop == start + max(1, int((end - start + 1) * asked.lsp))
    else:
        assert stop - label == max(1, int(length * asked.lsp))
    if isinstance(found, SkipReason):
        assert found is SkipReason.NOTHING_SUPERVISED
        return
    assert found.input_ids.tolist() == row.input_ids[first:stop].tolist()
    places = np.flatnonzero(found.supervised) + first
    assert places.min() >= max(label, first + 1)
    allowed = {
        "p": set(range(start)),
        "cot": set(range(start, end + 1 + (asked.cot_includes_next_token and "a" not in asked.sections.split("+")))),
        "a": set(range(end + 1, length)),
    }
    assert set(places.tolist()) <= set().union(*(allowed[name] for name in asked.sections.split("+")))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(any_text, any_text, any_text, proportions, proportions, st.sampled_from(SECTIONS))
def test_a_smaller_proportion_keeps_the_first_tokens_of_a_larger_one(
    renderer: tokenize.Renderer, user: str, thought: str, answer: str, one: float, other: float, sections: str
) -> None:
    row = render(renderer, user, thought, answer)
    for span in ("left", "cot-lead"):
        small, large = (example(row, view(p, span, sections)) for p in sorted((one, other)))
        if isinstance(small, Example) and isinstance(large, Example):
            assert small.input_ids.tolist() == large.input_ids[: small.input_ids.size].tolist()
            assert small.supervised.tolist() == large.supervised[: small.input_ids.size].tolist()
