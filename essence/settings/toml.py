"""From a TOML file to a record, with one sentence for the first thing that is wrong in it."""

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from essence.errors import ExperimentError, nearest, shortened
from essence.files import read_text
from essence.settings.base import check_name

AnyRecord = TypeVar("AnyRecord", bound=BaseModel)
Layer = tuple[str, Mapping[str, object]]
"""Where tables come from, and the tables."""
Location = tuple[int | str, ...]
BARE_KEY = re.compile(r"[A-Za-z0-9._-]{1,100}")
"""Keys that are shown as they are; dots in a name of the catalogue are no nesting."""


def checked_name(what: str, name: str, where: str) -> str:
    """A name that becomes part of paths and commands, as it is; ExperimentError for any other.

    what: `experiment`, `data set`, `model`, `benchmark`.
    """
    try:
        return check_name(name)
    except ValueError as error:
        raise ExperimentError(f"{where}: the {what} name {shown(name)} is not allowed: {error}", "rename it") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ExperimentError when it is missing, no file, not UTF-8 or not TOML."""
    try:
        text = read_text(path)
    except ValueError as error:
        raise ExperimentError(f"{path}: {error}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, and numbers of thousands of digits
        raise ExperimentError(f"{path}: not valid TOML: {error}") from None


def merge_tables(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`over` on top of `base`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge_tables(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def validate(
    record: type[AnyRecord], data: Mapping[str, object], where: str, layers: Sequence[Layer] = ()
) -> AnyRecord:
    """`data` as a `record`; ExperimentError naming `where`, key, value, what is allowed and the nearest known key.

    Where `data` is made of `layers`, the lowest first, the sentence names the layer that the value comes from.
    """
    try:
        return record.model_validate(data)
    except ValidationError as error:
        location = _place_in(data, _telling(error.errors()))
        named = next((name for name, tables in reversed(layers) if _holds(tables, location)), where)
        raise ExperimentError(f"{named}: {first_fault(record, data, error)}") from None


def first_fault(record: object, data: object, error: ValidationError) -> str:
    """One sentence for the first thing that is wrong in `data`, which was to be a `record`: place, found, wanted."""
    errors = error.errors()
    telling = _telling(errors)
    location = _place_in(data, telling)
    also = [e for e in errors if e["type"] != "missing" and _place_in(data, e) == location]
    return _sentence(record, telling, location, also or [telling])


def _telling(errors: list[ErrorDetails]) -> ErrorDetails:
    """The first error; of a misspelled key, which is one missing and one unknown, the unknown one."""
    if errors[0]["type"] != "missing":
        return errors[0]
    beside = [e for e in errors if e["type"] == "extra_forbidden" and e["loc"][:-1] == errors[0]["loc"][:-1]]
    return beside[0] if beside else errors[0]


def _place_in(data: Any, error: ErrorDetails) -> Location:
    """Where in the data an error is: pydantic's own location also names the branches of a choice of types."""
    found: list[int | str] = []
    for part in error["loc"]:
        if (isinstance(data, Mapping) and part in data) or _is_index(part, data):
            data = data[part]
            found.append(part)
        elif error["type"] == "missing":
            found.append(part)
    return tuple(found)


def _is_index(part: int | str, of: Any) -> bool:
    return isinstance(of, list) and isinstance(part, int) and part < len(of)


def _holds(tables: Any, location: Location) -> bool:
    """True when a layer has a value there."""
    for part in location:
        if not ((isinstance(tables, Mapping) and part in tables) or _is_index(part, tables)):
            return False
        tables = tables[part]
    return True


def _sentence(record: object, error: ErrorDetails, location: Location, also: list[ErrorDetails]) -> str:
    """What is wrong at a place; `also` are the errors there, one for each type that the value could have had."""
    key = _dotted(location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(record, location[:-1])
        return f"unknown key '{key}'{nearest(str(location[-1]), known)} (known: {', '.join(known)})"
    if error["type"] == "missing":
        return f"key '{key}' is missing"
    reasons = dict.fromkeys(map(_reason, also))
    reason = ", or ".join(r if not n else r.removeprefix("Input should be ") for n, r in enumerate(reasons))
    # The whole of a section says nothing.
    value = "" if isinstance(error["input"], dict | BaseModel) else f" = {shown(error['input'])}"
    found = _found(error["input"]) if error["type"].endswith("_type") else ""
    place = f"{key}{value}: " if key or value else ""  # what contradicts itself as a whole has no place of its own
    return f"{place}{reason[0].lower()}{reason[1:]}{found}"


def _reason(error: ErrorDetails) -> str:
    if error["type"] == "too_short":
        wanted, found = error["ctx"]["min_length"], error["ctx"]["actual_length"]
        return f"At least {wanted} {'entry is' if wanted == 1 else 'entries are'} wanted, found {found}"
    return error["msg"].removeprefix("Value error, ").split(", got ")[0]


def shown(value: Any) -> str:
    """A value as TOML writes it, on a short line."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = value.isoformat() if isinstance(value, date | time) else repr(value)
    except ValueError:
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
    return shortened(text)


def _found(value: Any) -> str:
    """What a value of a wrong type is, in the words of TOML."""
    kinds = {bool: "a boolean", str: "text in quotes", int: "an integer", float: "a number with decimals"}
    kinds.update({list: "a list", dict: "a table"})
    kind = "a date or time" if isinstance(value, date | time) else kinds.get(type(value))
    return f" (found: {kind})" if kind else ""


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if BARE_KEY.fullmatch(part) else shown(part)
            text += f".{word}" if text else word
    return text


def _known_keys(record: object, location: Location) -> list[str]:
    """Field names of the record that lies at `location` below `record`."""
    current: Any = record
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        while not (isinstance(current, type) and issubclass(current, BaseModel)):
            arguments = getattr(current, "__args__", ())
            if not arguments:
                break
            current = next((a for a in reversed(arguments) if a is not type(None)), None)
    known = current if isinstance(current, type) and issubclass(current, BaseModel) else record
    return list(getattr(known, "model_fields", ()))
