"""From a TOML file to a record, with one sentence for the first thing that is wrong in it."""

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from essence.errors import ExperimentError, nearest

AnyRecord = TypeVar("AnyRecord", bound=BaseModel)
LONGEST_NAME = 64


def checked_name(what: str, name: str, where: str) -> str:
    """A name that becomes part of paths and commands, as it is; ExperimentError for any other.

    what: `experiment`, `data set`, `model`, `benchmark`.
    """
    if len(name) > LONGEST_NAME:
        raise ExperimentError(
            f"{where}: the {what} name '{name[:LONGEST_NAME]}...' has {len(name)} characters, at most {LONGEST_NAME} "
            "are allowed; give it a shorter one"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ExperimentError(
            f"{where}: the {what} name {name!r} is not allowed: letters from a to z, digits, '.', '_' and '-' are, and "
            "no '.' at its beginning; give it another one"
        )
    return name


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ExperimentError when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: not valid TOML: {error}") from None


def merge_tables(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_tables(merged[key], value) if both else value
    return merged


def validate(record: type[AnyRecord], data: dict[str, Any], where: str) -> AnyRecord:
    """`data` as a `record`; ExperimentError naming `where`, key, value, what is allowed and the nearest known key."""
    try:
        return record.model_validate(data)
    except ValidationError as error:
        raise ExperimentError(f"{where}: {_sentence(record, _telling(error.errors()))}") from None


def _telling(errors: list[ErrorDetails]) -> ErrorDetails:
    """The first error; of a misspelled key, which is one missing and one unknown, the unknown one."""
    if errors[0]["type"] != "missing":
        return errors[0]
    beside = [e for e in errors if e["type"] == "extra_forbidden" and e["loc"][:-1] == errors[0]["loc"][:-1]]
    return beside[0] if beside else errors[0]


def _sentence(record: type[BaseModel], error: ErrorDetails) -> str:
    location = error["loc"]
    key = _dotted(location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(record, location[:-1])
        return f"unknown key '{key}'{nearest(str(location[-1]), known)} (known: {', '.join(known)})"
    if error["type"] == "missing":
        return f"key '{key}' is missing"
    reason = error["msg"].removeprefix("Value error, ")
    value = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"  # of a whole section says nothing
    return f"{key}{value}: {reason[0].lower()}{reason[1:]}"


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _known_keys(record: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
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
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return list(record.model_fields)
