"""The usable rows of a data set in order; every other one is counted by reason, with examples.

A row that no question and answer can be read from is rejected under both protocols. A row that the chat template
garbles (two closing markers, a thought never closed), that lacks a part, or that repeats an earlier one is rejected
where `faulty_rows` is "reject"; where it is "keep", as released, it is counted as a remark and used.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from essence.atomic import write_json
from essence.data.decontaminate import Decontaminator, read_questions
from essence.data.exchange import NOTES, Exchange, Fault, Reason
from essence.data.files import count_rows, no_rows_error, read_files
from essence.data.markers import Trace, has_solution_marker, replace_exactly, split_trace
from essence.data.readers import READERS
from essence.data.rejections import Rejections, rejection_table, seen_words
from essence.data.thoughts import THOUGHT_FIELDS, holds_thought
from essence.errors import InputError
from essence.settings import TokenizeSettings

Numbered = tuple[int, Exchange]
"""Position of a row in its data set, and its texts, with `<think>` and `</think>` around the thought."""
NO_ROWS = frozenset({Reason.NOT_A_ROW, Reason.MISSING_COLUMN})
"""A file in which every row has one of these is no file of rows."""
WHITE_SPACE = b" \t\n\r"
DIGEST_BYTES = 16


class AcceptedRows:
    """One pass over a folder of rows: iterate, then ask for `results()`. Holds some 80 bytes a row, to find repeats."""

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
            if read and self._strangers - strangers == read:
                foreign.append(path)
        if foreign and self._strangers < self.read:
            raise no_rows_error(foreign[0], "no row in it has the columns of the format")
        self._check_share()
        self._check_thoughts()

    def results(self) -> dict[str, Any]:
        """For the manifest: rows_read, rows_kept, rejections, remarks on kept rows, contamination by benchmark."""
        return {
            "rows_read": self.read,
            "rows_kept": self.kept,
            "rejections": self._rejected.as_dict(),
            "remarks": self._remarks.as_dict(),
            "contamination": self._decontaminator.results(),
        }

    def write(self, path: Path) -> None:
        """rejections.json: `results()` as a file of its own."""
        write_json(path, self.results())

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
        """Whether an earlier row has the same question and answer, white space apart."""
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
            entries = self._rejected.as_dict().items()
            most = next((f": {reason}{seen_words(entry)}" for reason, entry in entries), "")
            raise InputError(f"{table}\n{self._folder}: none of {self.read} rows can be used{most}")
        if faulty > limit * self.read:
            raise InputError(
                f"{table}\n{self._folder}: {faulty:,} of {self.read:,} rows are rejected, the share allowed is "
                f"{limit:g} (max_rejected_share of the data set in the experiment's TOML): mend the rows or raise it"
            )
