"""What became of the rows of each data set: kept, rejected, remarkable, with the reasons, from the manifests alone."""

from collections.abc import Iterator
from dataclasses import dataclass

from essence.data.accept import rejection_table
from essence.errors import RecordError
from essence.record.run_directory import StageFolder
from essence.record.stage_records import TokenizeManifest, TokenizeResults, read_manifest
from essence.report.page.tokens import TokensView, tokens_lines, tokens_view
from essence.report.results.records import Results
from essence.report.results.stage_reader import StageEvidence


@dataclass(frozen=True)
class ReasonRow:
    """One reason and how many rows it concerns."""

    reason: str
    fate: str
    """`rejected`, or `kept`."""
    count: int


@dataclass(frozen=True)
class RowsView:
    """One tokenized data set, as the report shows it."""

    title: str
    link: str
    summary: str
    reasons: tuple[ReasonRow, ...]
    contamination: tuple[str, ...]
    tokens: TokensView | None


@dataclass(frozen=True)
class TrainedRows:
    """What a training met in its rows, where anything is to be said of them."""

    title: str
    link: str
    rows: int
    tokens: int | None
    labels: int | None
    remarks: tuple[str, ...]


def trained_rows(results: Results) -> list[TrainedRows]:
    """Trainings that left rows out or took some with a note, in the order of the plan, each once."""
    done = {cell.train.id: (cell.name, cell.train) for cell in results.cells if cell.train.training}
    found = (_trained_rows(name, stage) for name, stage in done.values())
    return [view for view in found if view and view.remarks]


def _trained_rows(name: str, stage: StageEvidence) -> TrainedRows | None:
    read = stage.training.inputs.data.train if stage.training else None
    if read is None:
        return None
    counted = read.readings or read.rows
    what = "readings" if read.readings else "rows"
    noted = [f"{count:,} of {counted:,} {what}: {note}" for note, count in read.noted.items()]
    skipped = [f"{count:,} {what} left out: {reason}" for reason, count in read.skipped.items()]
    return TrainedRows(name, stage.link, read.rows, read.tokens, read.supervised_tokens, (*noted, *skipped))


def rows_lines(folder: StageFolder) -> list[str]:
    """The table of a finished tokenize stage as lines for a terminal; nothing for any other."""
    try:
        manifest = read_manifest(folder.manifest)
    except RecordError:
        return []
    if not isinstance(manifest, TokenizeManifest):
        return []
    results = manifest.results
    lines = [] if results.rejections is None else rejection_table(results)
    if len(lines) > 1:
        lines.append(f"  examples: {folder.output / 'rejections.json'}")
    return [*lines, *tokens_lines(results.statistics)]


def rows_views(results: Results) -> list[RowsView]:
    """One for each tokenized data set of an experiment."""
    done = ((stage, stage.tokenized.results) for stage in results.stages if stage.tokenized)
    return [_view(stage, found) for stage, found in done if found.rejections is not None]


def _view(stage: StageEvidence, found: TokenizeResults) -> RowsView:
    reasons = tuple(
        ReasonRow(reason, fate, entry.count)
        for fate, group in (("rejected", found.rejections or {}), ("kept", found.remarks))
        for reason, entry in group.items()
    )
    return RowsView(
        title=stage.title,
        link=stage.link,
        summary=rejection_table(found)[0],
        reasons=reasons,
        contamination=tuple(_contamination(found)),
        tokens=tokens_view(found.statistics),
    )


def _contamination(counts: TokenizeResults) -> Iterator[str]:
    """A sentence a benchmark, a count of zero included."""
    for name, found in counts.contamination.items():
        yield (
            f"{name} ({found.problems:,} problems): {found.exact:,} questions repeat one, "
            f"{found.overlap:,} overlap with one, {found.formulaic or 0:,} share a formula only"
        )
