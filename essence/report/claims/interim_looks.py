"""Looks at a run: a word is given at each, so the more there are, the wider the interval.

The first look has the 95 % interval: an end is wrong in 2.5 %. All later ones together have another 2.5 %: look k takes
2.5 % / (k (k - 1)) of an end, which sums to no more however many there are (a union bound, so it holds whatever was
added and why). A look counts where it judged one of the same trainings on other evidence: fewer seeds, other samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from essence.errors import RecordError
from essence.files import append_json_line, canonical_json, read_json_lines, sha256_text
from essence.record.record_files import Written, as_record
from essence.record.run_directory import RunDirectory
from essence.report.claims.evidence import LEVEL
from essence.report.claims.outcome import Measured
from essence.report.results.records import Results

FILE = "looks.jsonl"
"""In the folder of an experiment: a line for each claim and each new evidence that a word was given on."""


class Look(Written):
    """One claim judged once."""

    claim: str
    protocol: str
    evidence: str
    """Hash of the stages that were judged."""
    trainings: list[str]
    """Ids, sorted."""


@dataclass(frozen=True)
class Looks:
    """Those that were recorded, in order, for each experiment."""

    recorded: tuple[tuple[Look, ...], ...] = ()

    def number(self, look: Look) -> int:
        """Which look this is: 1 where none of its trainings was judged before on other evidence."""
        earlier = {one.evidence for some in self.recorded for one in _before(look, some)}
        return 1 + len(earlier)

    def extended(self, looks: Iterable[Look]) -> "Looks":
        """With these after all others."""
        added = tuple(looks)
        return Looks(tuple((*some, *added) for some in self.recorded or ((),)))


def level_of(number: int) -> float:
    """Confidence level of the interval at a look, from 1."""
    return LEVEL if number == 1 else 1.0 - (1.0 - LEVEL) / (number * (number - 1))


def share_of(number: int) -> float:
    """Share of the first look's chance of error that a look has."""
    return 1.0 if number == 1 else 1.0 / (number * (number - 1))


def look_at(claim: str, protocol: str, measured: Measured) -> Look | None:
    """The look that a verdict on this is; None where it gives no word whatever is found, or has no error."""
    estimate = measured.estimate
    open_ended = estimate.low is None and estimate.high is None
    if measured.why_open or measured.incomparable or open_ended or estimate.standard_error == 0.0:
        return None
    evidence = sha256_text(canonical_json(sorted(measured.stages)))[:16]
    return Look(claim=claim, protocol=protocol, evidence=evidence, trainings=sorted(set(measured.rests_on)))


def read_looks(results: Iterable[Results]) -> Looks:
    """Those of some experiments; RecordError for a file that is damaged."""
    return Looks(tuple(_read(_file(one)) for one in results))


def record_looks(results: Sequence[Results], looks: Sequence[Look]) -> None:
    """Write down in each experiment what was not there yet."""
    for one in results:
        known = {(look.claim, look.protocol, look.evidence) for look in _read(_file(one))}
        for look in looks:
            if (look.claim, look.protocol, look.evidence) not in known:
                append_json_line(_file(one), look.model_dump())


def _before(look: Look, recorded: Sequence[Look]) -> list[Look]:
    """Earlier looks of one experiment that judged one of the same trainings on other evidence."""
    same = [one for one in recorded if (one.claim, one.protocol) == (look.claim, look.protocol)]
    place = next((n for n, one in enumerate(same) if one.evidence == look.evidence), len(same))
    return [one for one in same[:place] if not set(one.trainings).isdisjoint(look.trainings)]


def _file(results: Results) -> Path:
    return RunDirectory(results.run_dir).experiment(results.experiment) / FILE


def _read(file: Path) -> tuple[Look, ...]:
    try:
        return tuple(as_record(file, line, Look, "a list of looks") for line in read_json_lines(file))
    except ValueError as error:
        raise RecordError(f"{file}: damaged ({error})", "restore it: it says how often results were judged") from None
