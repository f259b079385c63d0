"""Rejected and remarkable rows, counted by reason, with a few of each to look at; and how that is shown to people."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from essence.data.decontaminate import Decontaminator, read_questions
from essence.data.markers import Trace, has_solution_marker, replace_exactly, split_trace
from essence.data.readers import READERS
from essence.data.reasons import NOT_WANTED, NOTES, Exchange, Fault, Reason
from essence.data.row_files import count_rows, may_be_settings, no_rows_error, read_files
from essence.data.row_records import ReasonCount, RowCounts, RowExample
from essence.data.thoughts import THOUGHT_FIELDS, holds_thought
from essence.errors import InputError
from essence.files import write_json
from essence.settings import TokenizeSettings

EXAMPLES_KEPT = 5
SEEN_KEPT, SEEN_SHOWN = 50, 3
EXCERPT_CHARACTERS = 300
TEXT_END_CHARACTERS = 40
"""Of each long text in an excerpt, so much of its beginning and of its end: most faults are at one of them."""


@dataclass
class ReasonTally:
    """Rows that one reason concerns, as they come."""

    count: int = 0
    examples: list[RowExample] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def add(self, seen: str, position: int, row: object) -> None:
        self.count += 1
        if seen:
            name = seen if seen.isprintable() else excerpt(seen)[1:-1]
            if name in self.seen or len(self.seen) < SEEN_KEPT:
                self.seen[name] = self.seen.get(name, 0) + 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(RowExample(position=position, row=excerpt(row)))

    def record(self) -> ReasonCount:
        """Without `seen` where the reason has none."""
        if not self.seen:
            return ReasonCount(count=self.count, examples=self.examples)
        return ReasonCount(count=self.count, examples=self.examples, seen=self.seen)


@dataclass
class Rejections:
    """Rows by reason."""

    reasons: dict[str, ReasonTally] = field(default_factory=dict)
    count: int = 0
    faulty: int = 0
    """Of these, rows that were rejected for what they are, not because they are not wanted."""

    def add(self, fault: Fault, position: int, row: object) -> None:
        self.reasons.setdefault(fault.reason.value, ReasonTally()).add(fault.seen, position, row)
        self.count += 1
        self.faulty += fault.reason not in NOT_WANTED

    def record(self) -> dict[str, ReasonCount]:
        """The counts with examples, the most frequent reason first."""
        by_count = sorted(self.reasons.items(), key=lambda item: (-item[1].count, item[0]))
        return {reason: tally.record() for reason, tally in by_count}


def excerpt(row: object) -> str:
    """A row on one short line, with the middle of its long texts left out."""
    text = json.dumps(_shortened(row, depth=4), ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 1] + "…"


def _shortened(value: object, depth: int) -> object:
    if isinstance(value, str) and len(value) > 2 * TEXT_END_CHARACTERS:
        return f"{value[:TEXT_END_CHARACTERS]} … {value[-TEXT_END_CHARACTERS:]}"
    if isinstance(value, Mapping | list) and depth == 0:
        return "…"
    if isinstance(value, Mapping):
        # The system text is the same in every row and longer than all that matters.
        return {str(key): _shortened(inner, depth - 1) for key, inner in value.items() if key != "system"}
    if isinstance(value, list):
        return [_shortened(inner, depth - 1) for inner in value[:5]]
    return value


def rejection_table(counts: RowCounts, examples: bool = False) -> list[str]:
    """Lines for people on the rows of a tokenize stage: what was read, rejected and remarkable, and why."""
    read, kept = counts.rows_read, counts.rows_kept
    lines = [f"{read:,} rows read, {kept:,} kept, {read - kept:,} rejected ({share(read - kept, read)})"]
    lines += _reason_lines(counts.rejections or {}, "rejected", examples)
    lines += _reason_lines(counts.remarks, "kept", examples)
    for benchmark, found in counts.contamination.items():
        if found.exact or found.overlap:
            what = f"{found.exact:,} repeat one of its {found.problems:,} problems, {found.overlap:,} overlap"
            lines.append(f"  {benchmark}: {what}")
    return lines


def _reason_lines(reasons: Mapping[str, ReasonCount], fate: str, examples: bool) -> list[str]:
    lines = []
    for reason, entry in reasons.items():
        lines.append(f"  {entry.count:>9,} {fate}: {reason}{seen_words(entry)}")
        if examples:
            lines += [f"            row {example.position}: {example.row}" for example in entry.examples]
    return lines


def seen_words(entry: ReasonCount) -> str:
    """` (seen: 'human', 'gpt')`: the names that were found most, or nothing."""
    names = sorted(entry.seen.items(), key=lambda item: (-item[1], item[0]))
    more = "; ..." if len(names) > SEEN_SHOWN else ""
    return f" (seen: {'; '.join(name for name, _ in names[:SEEN_SHOWN])}{more})" if names else ""


def share(part: int, whole: int) -> str:
    """`3.1 %`; never 0 % of what is there."""
    if not part or not whole:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"


Numbered = tuple[int, Exchange]
"""Position of a row in its data set, and its texts, with `<think>` and `</think>` around the thought."""
NO_ROWS = frozenset({Reason.NOT_A_ROW, Reason.MISSING_COLUMN})
"""A `.json` file in which every row has one of these is no file of rows, but settings or the like."""
WHITE_SPACE = b" \t\n\r"
DIGEST_BYTES = 16


class AcceptedRows:
    """One pass over a folder of rows: iterate, then ask for `results()`. Holds about 80 bytes per row for repeats."""

    def __init__(self, folder: Path, settings: TokenizeSettings, problems: Mapping[str, Path]) -> None:
        """Count the rows and read the evaluation problems (benchmark -> folder).

        Raises:
            InputError: no file with rows, a damaged file, problems without the field that holds them.
        """
        self.total = count_rows(folder)
        self.read = 0
        self.kept = 0
        self._folder, self._settings = folder, settings
        self._reader = READERS[settings.format]
        self._rejected, self._remarks = Rejections(), Rejections()
        self._strangers = 0
        self._thought_held = False
        self._keys_seen: list[str] = []
        self._seen: set[bytes] = set()
        fields = settings.decontamination.problem_fields
        questions = {name: read_questions(problems[name], field) for name, field in fields.items()}
        self._decontaminator = Decontaminator(questions, settings.decontamination.overlap_words)

    def __iter__(self) -> Iterator[Numbered]:
        """Position and texts of each usable row.

        InputError at the end where a file holds none, too many or all were rejected, or no row holds a thought.
        """
        foreign: list[Path] = []
        for path, rows in read_files(self._folder):
            before, strangers = self.read, self._strangers
            for row in rows:
                exchange = self._accept(self.read, row)
                self.read += 1
                if exchange is not None:
                    self.kept += 1
                    self._note_thought(exchange, row)
                    yield self.read - 1, exchange
            read = self.read - before
            if read and self._strangers - strangers == read and may_be_settings(path):
                foreign.append(path)
        if foreign and self._strangers < self.read:
            raise no_rows_error(foreign[0], "no row in it has the columns of the format")
        self._check_share()
        self._check_thoughts()

    def results(self) -> RowCounts:
        """What became of the rows so far."""
        return RowCounts(
            rows_read=self.read,
            rows_kept=self.kept,
            rejections=self._rejected.record(),
            remarks=self._remarks.record(),
            contamination=self._decontaminator.results(),
        )

    def write(self, path: Path) -> None:
        """rejections.json: `results()` as a file of its own."""
        write_json(path, self.results().model_dump(mode="json"))

    def _accept(self, position: int, row: object) -> Exchange | None:
        """The row as it is to be rendered, or None when it was rejected; either way it is counted."""
        outcome = self._reader(row)
        if isinstance(outcome, Exchange) and len(outcome.user) + len(outcome.assistant) > self._row_limit:
            outcome = Fault(Reason.OVER_LONG)
        if isinstance(outcome, Fault):
            self._rejected.add(outcome, position, row)
            self._strangers += outcome.reason in NO_ROWS
            return None
        trace = split_trace(outcome)
        if self._rejects(self._faults(outcome, trace), position, row) or self._contaminated(position, row, outcome):
            return None
        return self._rendered(position, row, outcome, trace)

    @property
    def _row_limit(self) -> int:
        return self._settings.max_row_characters

    def _faults(self, exchange: Exchange, trace: Trace | Reason) -> list[Reason]:
        """All that is wrong with a row that can be rendered."""
        faults = [reason for reason in (exchange.remark, trace) if isinstance(reason, Reason)]
        if self._is_repeat(exchange):
            faults.append(Reason.DUPLICATE)
        return faults

    def _is_repeat(self, exchange: Exchange) -> bool:
        """True when an earlier row has the same question and answer, white space apart."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for text in (exchange.user, exchange.assistant):
            digest.update(text.encode("utf-8").translate(None, WHITE_SPACE) + b"\0")
        if digest.digest() in self._seen:
            return True
        self._seen.add(digest.digest())
        return False

    def _rejects(self, faults: list[Reason], position: int, row: object) -> bool:
        """Count the faults: the first that rejects the row, or else all of them as remarks."""
        if self._settings.faulty_rows == "reject":
            rejecting = next((fault for fault in faults if fault not in NOTES), None)
            if rejecting is not None:
                self._rejected.add(Fault(rejecting), position, row)
                return True
        for fault in faults:
            self._remarks.add(Fault(fault), position, row)
        return False

    def _contaminated(self, position: int, row: object, exchange: Exchange) -> bool:
        """Count a row whose question is an evaluation problem; whether it is to be left out."""
        if not self._decontaminator.check(position, exchange.user):
            return False
        if self._settings.decontamination.remove:
            self._rejected.add(Fault(Reason.CONTAMINATED), position, row)
        return self._settings.decontamination.remove

    def _rendered(self, position: int, row: object, exchange: Exchange, trace: Trace | Reason) -> Exchange:
        if self._settings.markers == "lenient" and isinstance(trace, Trace):
            return trace.exchange
        text = replace_exactly(exchange.assistant)
        if has_solution_marker(text):
            self._remarks.add(Fault(Reason.MARKER_LEFT), position, row)
        return Exchange(exchange.user, text)

    def _note_thought(self, exchange: Exchange, row: object) -> None:
        """Remember whether any row that is used holds a thought, and what the first one held instead."""
        self._thought_held = self._thought_held or holds_thought(exchange.assistant)
        if not self._thought_held and not self._keys_seen and isinstance(row, Mapping):
            self._keys_seen = [str(key) for key in row]

    def _check_thoughts(self) -> None:
        """InputError where the answers are all that was read: nothing of what is to be taught is in the rows."""
        if self._thought_held:
            return
        raise InputError(
            f"{self._folder}: none of the {self.kept:,} rows that can be used holds a thought (columns seen: "
            f"{', '.join(self._keys_seen) or 'none'}): put it before the answer between <think> and </think>, or into "
            f"the field {THOUGHT_FIELDS[0]} of the assistant's turn"
        )

    def _check_share(self) -> None:
        """InputError with the whole table where more rows were rejected than the experiment allows, or all were."""
        limit = self._settings.max_rejected_share
        faulty = self._rejected.faulty
        table = "\n".join(rejection_table(self.results(), examples=True))
        if self.kept == 0:
            entries = self._rejected.record().items()
            most = next((f": {reason}{seen_words(entry)}" for reason, entry in entries), "")
            raise InputError(f"{table}\n{self._folder}: none of {self.read} rows can be used{most}")
        if faulty > limit * self.read:
            raise InputError(
                f"{table}\n{self._folder}: {faulty:,} of {self.read:,} rows are rejected, the share allowed is "
                f"{limit:g} (max_rejected_share of the data set in the experiment's TOML): mend the rows or raise it"
            )
