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
from essence.data.exchange import NOTES, Exchange, Reason
from essence.data.files import count_rows, read_rows
from essence.data.markers import Trace, has_solution_marker, replace_exactly, split_trace
from essence.data.readers import READERS
from essence.data.rejections import Rejections, rejection_table
from essence.errors import InputError
from essence.settings import TokenizeSettings

Numbered = tuple[int, Exchange]
"""Position of a row in its data set, and its texts, with `<think>` and `</think>` around the thought."""
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
        self._seen: set[bytes] = set()
        fields = settings.decontamination.problem_fields
        questions = {name: read_questions(problems[name], field) for name, field in fields.items()}
        self._decontaminator = Decontaminator(questions, settings.decontamination.overlap_words)

    def __iter__(self) -> Iterator[Numbered]:
        """Position and texts of each usable row. InputError at the end where too many, or all, were rejected."""
        for position, row in enumerate(read_rows(self._folder)):
            self.read += 1
            exchange = self._accept(position, row)
            if exchange is not None:
                self.kept += 1
                yield position, exchange
        self._check_share()

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
            outcome = Reason.OVER_LONG
        if isinstance(outcome, Reason):
            self._rejected.add(outcome, position, row)
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
                self._rejected.add(rejecting, position, row)
                return True
        for fault in faults:
            self._remarks.add(fault, position, row)
        return False

    def _contaminated(self, position: int, row: object, exchange: Exchange) -> bool:
        """Count a row whose question is an evaluation problem; whether it is to be left out."""
        if not self._decontaminator.check(position, exchange.user):
            return False
        if self._settings.decontamination.remove:
            self._rejected.add(Reason.CONTAMINATED, position, row)
        return self._settings.decontamination.remove

    def _rendered(self, position: int, row: object, exchange: Exchange, trace: Trace | Reason) -> Exchange:
        if self._settings.markers == "lenient" and isinstance(trace, Trace):
            return trace.exchange
        text = replace_exactly(exchange.assistant)
        if has_solution_marker(text):
            self._remarks.add(Reason.MARKER_LEFT, position, row)
        return Exchange(exchange.user, text)

    def _check_share(self) -> None:
        """InputError with the whole table where more rows were rejected than the experiment allows, or all were."""
        limit = self._settings.max_rejected_share
        faulty = self._rejected.faulty
        table = "\n".join(rejection_table(self.results(), examples=True))
        if self.kept == 0:
            raise InputError(f"{table}\n{self._folder}: none of {self.read} rows can be used")
        if faulty > limit * self.read:
            raise InputError(
                f"{table}\n{self._folder}: {faulty:,} of {self.read:,} rows are rejected, the share allowed is "
                f"{limit:g} (max_rejected_share of the data set in the experiment's TOML): mend the rows or raise it"
            )
