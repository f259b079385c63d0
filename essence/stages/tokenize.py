"""Render every row of a data set with the tokenizer's own chat template, tokenise it once, and note where thought is.

Spans, sections and the length filter are views on the result (`essence/data/truncation.py`), so this is done once for
a data set and a tokenizer, whatever the number of cells. Rows that give no conversation are counted by reason. It takes
minutes and is redone after a kill; the result is the same.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from essence.data.accept import AcceptedRows, Numbered
from essence.data.encode import Encoded, Encoder, Text
from essence.data.final_answer import first_stated_as_result
from essence.data.reasons import Exchange
from essence.data.selection import SectionBounds
from essence.data.token_statistics import TokenStatistics, first_in_a_box
from essence.data.token_table import TokenRow, TokenWriter
from essence.data.truncation import Tokens
from essence.distill.pair_checks import think_token_ids
from essence.errors import InputError
from essence.files import sha256_text, write_json
from essence.models.loading import load_tokenizer
from essence.models.template import check_template, render
from essence.progress import StageContext
from essence.record.outcomes import StageCost, TokenizeOutcome
from essence.record.stage_records import TokenizeData, TokenizeExecuted, TokenizeResults
from essence.settings import TokenizeSettings

BATCH_ROWS = 256


def run(settings: TokenizeSettings, context: StageContext) -> TokenizeOutcome:
    """Write `tokens.arrow` and `statistics.json` from the inputs `rows` and `tokenizer` (their `rows/` and `model/`).

    Raises:
        InputError: no rows, no usable row, a damaged file, no chat template, no think tokens.
        Stopped: asked for; nothing is kept.
    """
    benchmarks = settings.decontamination.problem_fields
    problems = {name: context.inputs[f"problems-{name}"] / "problems" for name in benchmarks}
    rows = AcceptedRows(context.inputs["rows"] / "rows", settings, problems)
    renderer = Renderer(
        context.inputs["tokenizer"] / "model", settings.keep_generation_header, context.resources.threads
    )
    statistics, without_start, without_end = TokenStatistics(), 0, 0
    with TokenWriter(context.partial / "tokens.arrow") as writer, closing(renderer):
        for rendered in renderer.tokenised(iter(rows)):
            writer.write(rendered)
            without_start += sum(row.think_start < 0 for row in rendered)
            without_end += sum(row.think_end < 0 for row in rendered)
            add_statistics(statistics, rendered)
            context.progress.update("tokenize", rows.read, rows.total, "rows")
            context.stop.check()
    rows.write(context.partial / "rejections.json")
    counted = statistics.record()
    write_json(context.partial / "statistics.json", counted.model_dump(mode="json"))
    return TokenizeOutcome(
        results=TokenizeResults(**rows.results().model_dump(), tokens=counted.tokens, statistics=counted),
        data=TokenizeData(tokens_sha256=writer.sha256),
        executed=TokenizeExecuted(
            template_sha256=renderer.template_sha256,
            encoder=renderer.encoder.library,
            encoder_reason=renderer.encoder.reason,
            rows_without_think_start=without_start,
            rows_without_think_end=without_end,
        ),
        cost=StageCost(tokens=counted.tokens),
    )


class Renderer:
    """A tokenizer with its chat template."""

    def __init__(self, model: Path, keep_generation_header: bool, threads: int) -> None:
        """Load the tokenizer of a model folder; InputError when it lacks a usable chat template or the think tokens."""
        check_template(model, model)
        self._tokenizer: Any = load_tokenizer(model)
        self._think_start, self._think_end = think_token_ids(self._tokenizer, model)
        self._keep_generation_header = keep_generation_header
        if not isinstance(self._tokenizer.chat_template, str):
            raise InputError(f"{model}: the tokenizer has no chat template: use a model that has one")
        self.template_sha256 = sha256_text(self._tokenizer.chat_template)
        self.encoder = Encoder(self._tokenizer.backend_tokenizer, threads)

    def tokenised(self, rows: Iterator[Numbered]) -> Iterator[list[TokenRow]]:
        """Batches of rendered rows, never truncated; one batch is encoded while the next one is rendered."""
        waiting: tuple[list[Numbered], Callable[[], list[Encoded]]] | None = None
        while batch := list(islice(rows, BATCH_ROWS)):
            started = self.encoder.start([self._text(exchange) for _, exchange in batch])
            if waiting:
                yield self._rows(*waiting)
            waiting = batch, started
        if waiting:
            yield self._rows(*waiting)

    def close(self) -> None:
        """End the encoder's threads."""
        self.encoder.close()

    def _text(self, exchange: Exchange) -> Text:
        text = self.render(exchange)
        start = text.find("<think>")
        return Text(text, (first_in_a_box(text, start), first_stated_as_result(text, start)))

    def render(self, exchange: Exchange) -> str:
        """The row's text, as released: user and assistant turn, then, where kept, the stray header of trap 5."""
        turns = [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.assistant}]
        return render(self._tokenizer, turns, self._keep_generation_header)

    def _rows(self, batch: list[Numbered], encoded: Callable[[], list[Encoded]]) -> list[TokenRow]:
        return [
            TokenRow(position, e.ids, _first(e.ids, self._think_start), _first(e.ids, self._think_end), *e.marked)
            for (position, _), e in zip(batch, encoded(), strict=True)
        ]


def add_statistics(statistics: TokenStatistics, rendered: list[TokenRow]) -> None:
    """Count a batch."""
    rows = ((row.input_ids.size, row.think_start, row.think_end, row.answer, row.boxed) for row in rendered)
    *bounds, boxed = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    statistics.add(SectionBounds(*bounds), boxed)


def _first(input_ids: Tokens, token: int) -> int:
    found = np.flatnonzero(input_ids == token)
    return int(found[0]) if found.size else -1
