"""The file that `invoke grade` reads: JSON lines of a gold answer and a completion, as people write them."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NoReturn

from essence.errors import InputError, nearest
from essence.evaluation.grading_pool import Item
from essence.files import decode_text, json_fault, read_text
from essence.paths import typed_path

STANDARD_INPUT = "-"
WANTED = 'wanted: {"gold": "42", "completion": "..."}'


class Lines:
    """The lines of a file, or of standard input for `-`; empty ones are left out."""

    def __init__(self, file: str) -> None:
        self.name = "standard input" if file == STANDARD_INPUT else file
        self.twice_named = 0
        """Lines with a field that is there twice; the last one counts, as in JSON."""
        self.items = list(self._items(_read(file, self.name)))
        if not self.items:
            raise InputError(f"{self.name} holds no line, {WANTED} in each line.")

    def notes(self) -> list[str]:
        """What a reader may not know of the file, though it can be graded."""
        repeated = sum(Counter((item.gold, item.completion) for item in self.items).values())
        repeated -= len({(item.gold, item.completion) for item in self.items})
        notes = [f"repeated lines {repeated}, each counted again"] if repeated else []
        return notes + ([f"lines with a field twice {self.twice_named}, the last counts"] if self.twice_named else [])

    def _items(self, text: str) -> Iterator[Item]:
        # Not `splitlines`: completions hold U+2028 and the like.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield self._item(line, f"{self.name}, line {number}")

    def _item(self, line: str, place: str) -> Item:
        row = self._row(line, place)
        if not isinstance(row, dict):
            raise InputError(f"{place}: found {type(row).__name__}, {WANTED}.")
        gold, completion = _text(row, "gold", place, numbers=True), _text(row, "completion", place)
        if not gold.strip():
            raise InputError(f"{place}: field 'gold' is empty, {WANTED}.")
        return Item(gold, completion, place)

    def _row(self, line: str, place: str) -> object:
        if "\r" in line.rstrip("\r"):
            raise InputError(f"{place}: found a carriage return within it, wanted: lines that end in a newline.")
        try:
            row: object = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=self._object)
            return row
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: no JSON ({json_fault(error)}), {WANTED}.") from None

    def _object(self, pairs: list[tuple[str, object]]) -> Mapping[str, object]:
        found = dict(pairs)
        self.twice_named += len(found) < len(pairs)
        return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _text(row: Mapping[str, object], field: str, place: str, numbers: bool = False) -> str:
    """The text in a field of a line; numbers: a number is one too, as in a benchmark's answers."""
    if field not in row:
        raise InputError(f"{place}: field {field!r}: no such field{nearest(field, row)}, {WANTED}.")
    value = row[field]
    if numbers and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{place}: field {field!r}: {type(value).__name__}, {WANTED}.")
    return value


def _read(file: str, name: str) -> str:
    try:
        if file == STANDARD_INPUT:
            return decode_text(sys.stdin.buffer.read())
        return read_text(typed_path("FILE", file))
    except ValueError as error:
        raise InputError(f"{name}: {error}.") from None
