"""Render every row of a data set with the tokenizer's own chat template, tokenise it once, and note where thought is.

Spans, sections and the length filter are views on the result (`essence/distill/sequence.py`), so this is done once for
a data set and a tokenizer, whatever the number of cells. Rows that give no conversation are counted by reason. It takes
minutes and is redone after a kill; the result is the same.
"""

import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from essence.data.accept import AcceptedRows, Numbered
from essence.data.exchange import Exchange
from essence.distill.models import load_tokenizer, think_token_ids
from essence.distill.sequence import Tokens
from essence.distill.tokens import TokenRow, TokenWriter
from essence.errors import InputError
from essence.record.canonical import sha256_text
from essence.settings import TokenizeSettings
from essence.stages.context import StageContext, StageOutcome

BATCH_ROWS = 256


def run(settings: TokenizeSettings, context: StageContext) -> StageOutcome:
    """Write `tokens.arrow` from the inputs `rows` (its folder `rows/`) and `tokenizer` (its folder `model/`).

    Raises:
        InputError: no rows, no usable row, a damaged file, no chat template, no think tokens.
        Stopped: asked for; nothing is kept.
    """
    os.environ["RAYON_NUM_THREADS"] = str(context.resources.threads)  # read by the tokenizer at its first batch
    renderer = Renderer(context.inputs["tokenizer"] / "model", settings.keep_generation_header)
    benchmarks = settings.decontamination.problem_fields
    problems = {name: context.inputs[f"problems-{name}"] / "problems" for name in benchmarks}
    rows = AcceptedRows(context.inputs["rows"] / "rows", settings, problems)
    markers, tokens = Counter[str](), 0
    accepted = iter(rows)
    with TokenWriter(context.partial / "tokens.arrow") as writer:
        while batch := list(islice(accepted, BATCH_ROWS)):
            rendered = renderer.tokenise(batch)
            writer.write(rendered)
            markers.update(count_markers(rendered))
            tokens += sum(row.input_ids.size for row in rendered)
            context.progress.update("tokenize", rows.read, rows.total, "rows")
            context.stop.check()
    rows.write(context.partial / "rejections.json")
    return StageOutcome(
        results={**rows.results(), "tokens": tokens},
        data={"tokens_sha256": writer.sha256},
        executed={"template_sha256": renderer.template_sha256, **{name: markers[name] for name in MARKER_COUNTS}},
        cost={"tokens": tokens},
    )


class Renderer:
    """A tokenizer with its chat template."""

    def __init__(self, model: Path, keep_generation_header: bool) -> None:
        """Load the tokenizer of a model folder; InputError when it lacks a chat template or the think tokens."""
        self._tokenizer: Any = load_tokenizer(model)
        self._think_start, self._think_end = think_token_ids(self._tokenizer, model)
        self._keep_generation_header = keep_generation_header
        if not isinstance(self._tokenizer.chat_template, str):
            raise InputError(f"{model}: the tokenizer has no chat template: use a model that has one")
        self.template_sha256 = sha256_text(self._tokenizer.chat_template)

    def tokenise(self, batch: list[Numbered]) -> list[TokenRow]:
        """Whole rendered rows, never truncated."""
        texts = [self.render(exchange) for _, exchange in batch]
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [
            self._row(position, np.array(ids, dtype=np.int32))
            for (position, _), ids in zip(batch, encoded["input_ids"], strict=True)
        ]

    def render(self, exchange: Exchange) -> str:
        """The row's text, as released: user and assistant turn, then, where kept, the stray header of trap 5."""
        turns = [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.assistant}]
        text: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=self._keep_generation_header, enable_thinking=True
        )
        return text

    def _row(self, position: int, input_ids: Tokens) -> TokenRow:
        return TokenRow(position, input_ids, _first(input_ids, self._think_start), _first(input_ids, self._think_end))


MARKER_COUNTS = ("rows_without_think_start", "rows_without_think_end")


def count_markers(rendered: list[TokenRow]) -> Counter[str]:
    """How many rows lack a think token after rendering."""
    counts = (
        sum(row.think_start < 0 for row in rendered),
        sum(row.think_end < 0 for row in rendered),
    )
    return Counter(dict(zip(MARKER_COUNTS, counts, strict=True)))


def _first(input_ids: Tokens, token: int) -> int:
    found = np.flatnonzero(input_ids == token)
    return int(found[0]) if found.size else -1
