"""What docs/arms.md shows: a row under every arm, drawn by the rules themselves, and the numbers of a miniature.

`ESSENCE_RENEW_GOLDEN=1 .venv/bin/pytest tests/data/test_arms_page.py` writes both anew. The numbers are those of
docs/tiny-controls/arms.csv: the CSV of the picture of a finished `tiny-controls`, beside its PNG.
"""

import csv
import os
import re

import numpy as np

from essence.data.final_answer import first_stated_as_result
from essence.data.selection import SectionBounds
from essence.data.truncation import Example, make_examples
from essence.settings import first_tokens
from support.project import PROJECT
from support.some_resources import some_view

PAGE = PROJECT / "docs" / "arms.md"
TEXT = r"Add 17 and 25.<think>7+5=12, carry 1. 1+2+1=4. So it is 42. Check: 42-25=17.</think>It is \boxed{42}."
PIECES = re.findall(r"</?think>|.", TEXT)
"""Its tokens: a character each, and the two markers."""
DRAWN = (
    *(("left", 0.25), ("left", 0.5), ("middle", 0.5), ("right", 0.5), ("cot-lead", 0.5)),
    *(("random-span", 0.25), ("random-span", 0.5), ("random-tokens", 0.25), ("random-tokens", 0.5)),
    *(("first-16", 1.0), ("lead+answer", 0.5), ("to-first-answer", 1.0), ("teacher-entropy", 0.25)),
)


def kept(span: str, lsp: float) -> Example:
    """The row under an arm; the teacher of `teacher-entropy` is unsure of every digit alone."""
    start, end = PIECES.index("<think>"), PIECES.index("</think>")
    characters = [place for place, piece in enumerate(PIECES) for _ in piece]
    answer = characters[first_stated_as_result(TEXT, TEXT.index("<think>"))]
    unsure = np.array([piece.isdigit() for piece in PIECES], np.float16)
    ids, bounds = np.arange(len(PIECES), dtype=np.int32), SectionBounds.of(len(PIECES), start, end, answer)
    view = some_view(span=span, lsp=lsp, draw_seed=1, keep_context=True)
    (found,) = make_examples(np.array([0]), [ids], bounds, view, -1, entropies=[unsure])
    assert isinstance(found, Example)
    return found


def line(span: str, lsp: float) -> str:
    """A mark for each character: `#` of a label, `-` of what is read alone, nothing of what is not read."""
    example = kept(span, lsp)
    marks = dict(zip(example.input_ids.tolist(), np.where(example.supervised, "#", "-").tolist(), strict=True))
    drawn = "".join(marks.get(place, " ") * len(piece) for place, piece in enumerate(PIECES))
    share = "" if first_tokens(span) or span == "to-first-answer" else f"{lsp:g}"
    return f"{span:<15} {share:>4}  {drawn}".rstrip()


def drawing() -> str:
    lines = [f"{'':<15} {'':>4}  {TEXT}", *(line(span, lsp) for span, lsp in DRAWN)]
    return "\n".join(("```text", *lines, "```"))


def table() -> str:
    """The arms of the miniature, from the data of its picture."""
    rows = list(
        csv.DictReader((PROJECT / "docs" / "tiny-controls" / "arms.csv").read_text(encoding="utf-8").splitlines())
    )
    lines = ["| arm | tokens read an epoch | labels | accuracy |", "|---|---|---|---|"]
    for row in rows:
        named = row["curve"] if not row["span"] or row["curve"] == "whole rows" else f"`{row['span']}`"
        share = f" {row['lsp']}" if row["lsp"] not in ("", "1.0") else ""
        equal = ", equal tokens" if row["token_budget"] else ""
        counts = [f"{float(row[name]):,.0f}" if row[name] else "" for name in ("tokens_an_epoch", "labels_an_epoch")]
        found, low, high = (f"{100 * float(row[name]):.1f}" for name in ("accuracy", "low", "high"))
        lines.append(f"| {named}{share}{equal} | {counts[0]} | {counts[1]} | {found} % [{low}, {high}] |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def on_page(pattern: str, made: str) -> None:
    """That a part of the page is what was made; where it is renewed, it becomes so."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(pattern, page, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    if os.environ.get("ESSENCE_RENEW_GOLDEN"):
        PAGE.write_text(page.replace(found[0], made), encoding="utf-8")
        return
    assert found[0] == made


def test_the_row_on_the_page_is_what_the_code_makes_of_it() -> None:
    on_page(r"^```text\n.*?^```$", drawing())
    for span, lsp in DRAWN:
        if lsp < 1.0 and span in ("random-span", "random-tokens", "left"):
            assert np.count_nonzero(kept(span, lsp).supervised) == int(len(PIECES) * lsp) - 1


def test_the_numbers_on_the_page_are_those_of_the_miniature() -> None:
    on_page(r"^\| arm \| tokens read.*?\n(?=\n)", table())
