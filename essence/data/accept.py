"""The usable rows of a data set in order; the others are counted by reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essence.data.exchange import Exchange
from essence.data.files import count_rows, read_rows
from essence.data.readers import READERS
from essence.data.rejections import Rejections
from essence.errors import InputError
from essence.settings import TokenizeSettings

Numbered = tuple[int, Exchange]
"""Position of a row in its data set, and its texts."""


class AcceptedRows:
    """One pass over a folder of rows: iterate, then ask for `results()`."""

    def __init__(self, folder: Path, settings: TokenizeSettings) -> None:
        """Count the rows; InputError where there is no file with rows."""
        self.total = count_rows(folder)
        self.read = 0
        self.kept = 0
        self._rejections = Rejections()
        self._folder = folder
        self._reader = READERS[settings.format]

    def __iter__(self) -> Iterator[Numbered]:
        """Position and texts of each usable row. InputError at the end where none was usable."""
        for position, row in enumerate(read_rows(self._folder)):
            self.read += 1
            outcome = self._reader(row)
            if isinstance(outcome, Exchange):
                self.kept += 1
                yield position, outcome
            else:
                self._rejections.add(outcome, position, row)
        if self.kept == 0:
            reasons = self._rejections.as_dict()
            raise InputError(f"{self._folder}: none of {self.read} rows can be used: {reasons}")

    def results(self) -> dict[str, Any]:
        """For the manifest: rows_read, rows_kept, rejections."""
        return {"rows_read": self.read, "rows_kept": self.kept, "rejections": self._rejections.as_dict()}
