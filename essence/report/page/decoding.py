"""How completions were decoded: what the engine took to start, how fast it was, and whether its memory was enough."""

from dataclasses import asdict, dataclass

from essence import text
from essence.record.evaluation_records import GenerateLoad
from essence.report.results.records import Results
from essence.report.results.stage_reader import StageEvidence

DECODING_COLUMNS = ("Completions", "Start", "Tokens a second", "Key-value tokens", "Put back")


@dataclass(frozen=True)
class DecodingRow:
    """One finished generation, of the attempt that ended it."""

    title: str
    link: str
    start_s: float
    tokens_per_s: float | None
    key_value_tokens: int | None
    preemptions: int | None

    @property
    def line(self) -> list[str]:
        """A cell for each of `DECODING_COLUMNS`."""
        counts = (self.tokens_per_s, self.key_value_tokens, self.preemptions)
        return [self.title, text.duration(self.start_s), *map(text.whole, counts)]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def decoding_rows(results: Results) -> list[DecodingRow]:
    """Finished generations in the order of the plan; without those of earlier versions, which do not say."""
    return [row for stage in results.stages if (row := _row(stage))]


def _row(stage: StageEvidence) -> DecodingRow | None:
    if stage.generated is None:
        return None
    told = GenerateLoad.model_validate(stage.generated.cost.more.model_dump())
    if told.decoder_start_s is None:
        return None
    return DecodingRow(
        title=stage.title,
        link=stage.link,
        start_s=told.decoder_start_s,
        tokens_per_s=told.decode_tokens_per_s,
        key_value_tokens=told.key_value_tokens,
        preemptions=told.preemptions,
    )
