"""Completions for the page's sample browser: one compressed piece per evaluation, unpacked only when shown.

A page opened from disk may read no other file except a script that it names, so a piece is base64 text: inside
report.html while all of them together are small, else a script each in `samples/` beside it.
"""

import base64
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

from pydantic import Field, ValidationError

from essence.errors import InputError
from essence.evaluation.benchmarks import read_problems
from essence.evaluation.sample_lines import SampleLine, VerdictLine, read_lines
from essence.files import canonical_json, sha256_file, sha256_text
from essence.record.live_records import Live, look_at
from essence.record.run_directory import RunDirectory
from essence.report.results.records import Results
from essence.report.results.stage_reader import StageEvidence
from essence.settings import BenchmarkSettings
from essence.text import slug

FORMAT = 1
"""Of a piece; a new version rewrites every piece."""
MOST_EMBEDDED_BYTES = 8_000_000
"""Of all pieces as text; with more they lie beside the page, which would open slowly otherwise."""
PIECE_CHARACTERS = 16_000_000
"""Of the completions of one piece; with more the longest lose their middle, see `longest_kept`."""
COMPRESSION = 6


class SamplePiece(TypedDict):
    """The completions of one evaluation, column by column, in the order of samples.jsonl: read by samples.js."""

    problems: list[tuple[str, str]]
    """(id, gold)."""
    problem: list[int]
    """Place of each sample's problem in `problems`."""
    sample: list[int]
    correct: list[bool]
    status: list[str]
    extracted: list[str | None]
    tokens: list[int]
    finish_reason: list[str]
    loop_at: list[int | None]
    text: list[str]
    """Each completion, or its beginning where it is cut."""
    left_out: list[int]
    """Characters between beginning and end."""
    end: list[str]


Piece = SamplePiece | dict[str, str]
"""Completions, or problem -> statement."""


@dataclass(frozen=True)
class Source:
    """What one piece is made from."""

    id: str
    made_from: str
    """Changes when the piece would."""
    make: Callable[[], Piece]
    """InputError, KeyError or ValueError where the files do not tell."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of a report: which there are, and those that the page itself holds."""

    ids: frozenset[str] = frozenset()
    embedded: dict[str, str] = field(default_factory=dict)
    bytes: int = 0

    @property
    def beside(self) -> bool:
        """Whether they are files of their own."""
        return bool(self.ids) and not self.embedded


class ReportFiles(Live):
    """report.json of a report that is there already, as far as its files can be taken over."""

    files: dict[str, str] = Field(default_factory=dict)
    """Path beside report.json -> sha256."""


def write_pieces(results: Results, folder: Path, old: Path) -> Pieces:
    """Write `<folder>/samples/<id>.js` for every evaluation; what the report in `old` holds unchanged, by
    the hash in its record, is linked.

    Takes the files away again and returns their texts when all together are at most `MOST_EMBEDDED_BYTES`. An
    evaluation whose files are missing or damaged has no piece: `invoke verify` is what tells why.
    """
    samples = folder / "samples"
    samples.mkdir()
    earlier = look_at(old / "report.json", ReportFiles)
    hashes = earlier.files if earlier else {}
    written = {s.id: samples / f"{s.id}.js" for s in sources(results) if _write(s, samples, old, hashes)}
    total = sum(file.stat().st_size for file in written.values())
    if total > MOST_EMBEDDED_BYTES:
        return Pieces(frozenset(written), bytes=total)
    texts = {id: _text_in(file) for id, file in written.items()}
    shutil.rmtree(samples)
    return Pieces(frozenset(written), texts, total)


def sources(results: Results) -> Iterator[Source]:
    """A piece for every finished grade stage, and one for the problems of each benchmark."""
    run, seen = RunDirectory(results.run_dir), set()
    for grade in (s for s in results.stages if s.stage == "grade" and s.state == "done"):
        assert grade.manifest is not None, "it is done"
        made_from = sha256_text(canonical_json([FORMAT, PIECE_CHARACTERS, grade.manifest.seal]))
        yield Source(grade.id, made_from, partial(sample_piece, run, grade))
        id = problems_id(grade)
        if id not in seen:
            seen.add(id)
            yield Source(id, sha256_text(canonical_json([FORMAT, id])), partial(problem_piece, run, grade))


def problems_id(grade: StageEvidence) -> str:
    """Id of the piece that holds the statements of a grade stage's problems."""
    benchmark = grade.graded.results.benchmark if grade.graded else None
    return f"{grade.inputs.get('problems', 'none')}-{slug(str(benchmark))}"


def sample_piece(run: RunDirectory, grade: StageEvidence) -> SamplePiece:
    """Problems with their gold, and the samples. ValueError where the verdicts are those of other samples."""
    samples = read_lines(run.stage(grade.inputs["samples"]).output / "samples.jsonl", SampleLine)
    verdicts = read_lines(grade.folder.output / "verdicts.jsonl", VerdictLine)
    if [(s.problem, s.sample) for s in samples] != [(v.problem, v.sample) for v in verdicts]:
        raise ValueError(f"the verdicts in {grade.folder.output} are not those of its samples")
    golds = {v.problem: v.gold for v in verdicts}
    number = {problem: place for place, problem in enumerate(golds)}
    texts = [s.completion for s in samples]
    kept = longest_kept([len(text) for text in texts], PIECE_CHARACTERS)
    cut = [_cut(text, kept) for text in texts]
    return {
        "problems": list(golds.items()),
        "problem": [number[v.problem] for v in verdicts],
        "sample": [v.sample for v in verdicts],
        "correct": [v.correct for v in verdicts],
        "status": [v.status for v in verdicts],
        "extracted": [v.extracted for v in verdicts],
        "tokens": [s.tokens for s in samples],
        "finish_reason": [s.finish_reason for s in samples],
        "loop_at": [s.loop_at for s in samples],
        "text": [begin for begin, _, _ in cut],
        "left_out": [middle for _, middle, _ in cut],
        "end": [end for _, _, end in cut],
    }


def problem_piece(run: RunDirectory, grade: StageEvidence) -> dict[str, str]:
    """Problem -> statement."""
    settings = BenchmarkSettings.model_validate(grade.resolved["benchmark"])
    folder = run.stage(grade.inputs["problems"]).output / "problems"
    return {problem.id: problem.problem for problem in read_problems(folder, settings)}


def longest_kept(lengths: Sequence[int], most: int) -> int | None:
    """The length at which completions are cut so that all together have `most` characters; None where they fit."""
    for place, length in enumerate(sorted(lengths)):
        waiting = len(lengths) - place
        if length * waiting > most:
            return most // waiting
        most -= length
    return None


def packed(piece: Mapping[str, object]) -> str:
    """Gzipped JSON in base64; the same piece gives the same text."""
    text = json.dumps(piece, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), COMPRESSION, mtime=0)).decode("ascii")


def _cut(text: str, kept: int | None) -> tuple[str, int, str]:
    """Beginning, characters left out, end."""
    if kept is None or len(text) <= kept:
        return text, 0, ""
    return text[: kept - kept // 2], len(text) - kept, text[len(text) - kept // 2 :]


def _write(source: Source, folder: Path, old: Path, hashes: dict[str, str]) -> bool:
    """Whether there is a piece now; `hashes` are those of the old report's files."""
    target, first = folder / f"{source.id}.js", f"// {source.made_from}\n"
    name = f"samples/{target.name}"
    if _begins_with(old / name, first) and hashes.get(name) == sha256_file(old / name):
        try:
            os.link(old / name, target)
        except OSError:
            shutil.copyfile(old / name, target)
        return True
    try:
        text = packed(source.make())
    except (InputError, ValidationError, KeyError, TypeError, ValueError):
        return False
    target.write_text(f'{first}essencePiece("{source.id}", "{text}");\n', encoding="ascii")
    return True


def _begins_with(file: Path, first: str) -> bool:
    try:
        with file.open(encoding="ascii") as opened:
            return opened.readline() == first
    except OSError:
        return False


def _text_in(file: Path) -> str:
    return file.read_text(encoding="ascii").rsplit('"', 2)[1]
