"""Any value of any key loads or is named, and every number that people write has two bounds."""

import tomllib
from datetime import UTC, date, datetime
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from essence.engines.slurm.site import Site
from essence.errors import KitError
from essence.plan.catalogue import Catalogue
from essence.plan.experiment import load
from essence.plan.schema import ExperimentSchema
from essence.report.claims.definition import Claim, ClaimsFile
from essence.stages.tiny.source_options import OPTIONS
from support.planned_sources import reasons


def leaves(tables: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(tables, dict) or not tables:
        return [path]
    return [leaf for key, value in tables.items() for leaf in leaves(value, (*path, key))]


def tiny_keys() -> list[tuple[str, ...]]:
    """Every key of the miniature, tables included."""
    loaded = load("tiny")
    tables = loaded.experiment.model_dump(exclude={"matrix", "extends"})
    tables["axes"] = {axis: [] for axis in tables["axes"]}
    tables.update({kind: {} for kind in ("models", "datasets", "benchmarks")})
    for kind, names in (("models", ["tiny-student"]), ("datasets", ["tiny"]), ("benchmarks", ["tiny-sums"])):
        tables[kind] = {name: getattr(loaded.catalogue, kind)[name].model_dump() for name in names}
    keys = leaves(tables)
    return [*keys, *{key[:-1] for key in keys if len(key) > 1}, ("matrix",), ("extends",)]


KEYS = sorted(tiny_keys())
numbers = st.one_of(
    st.integers(-(2**80), 2**80),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**20]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e-300, 5e-324, 1e308, 0.5]),
)
plain = st.one_of(
    numbers,
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["cell", "1", "tiny", "cpu", "float32", "x" * 400, "~", "~nobody/x", "/", "..", "/dev/null"]),
    st.just(date(2024, 1, 1)),
    st.just(datetime(2024, 1, 1, tzinfo=UTC)),
)
values = st.one_of(
    plain, st.lists(plain, max_size=3), st.dictionaries(st.sampled_from(["a", "seed"]), plain, max_size=2)
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@example(key=("benchmarks", "tiny-sums", "path"), value="/")
@given(key=st.sampled_from(KEYS), value=values)
def test_any_value_of_any_key_loads_or_is_named(
    tmp_path_factory: pytest.TempPathFactory, key: tuple[str, ...], value: Any
) -> None:
    tables: Any = value
    for part in reversed(key):
        tables = {part: tables}
    file = tmp_path_factory.mktemp("any") / "inner" / "mine.toml"
    file.parent.mkdir()
    text = tomlkit.dumps({"extends": "tiny", **tables})
    try:
        tomllib.loads(text)
    except ValueError:
        return  # not TOML: the writer's doing
    file.write_text(text, encoding="utf-8")
    try:
        reasons(file)
    except KitError as error:
        message = str(error)
        assert "\n" not in message and str(file) in message
        assert any(part in message for part in (key[-1], key[0])), message


TABLES = (ExperimentSchema, Catalogue, Site, Claim, ClaimsFile, *OPTIONS.values())
OPEN = {"Claim/accepts"}
"""An interval may have no upper limit."""


def numbers_without_bounds(schema: Any, path: str) -> list[str]:
    if isinstance(schema, list):
        return [found for part in schema for found in numbers_without_bounds(part, path)]
    if not isinstance(schema, dict) or path in OPEN:
        return []
    found = []
    if schema.get("type") in ("integer", "number"):
        bounds = [{"minimum", "exclusiveMinimum"} & schema.keys(), {"maximum", "exclusiveMaximum"} & schema.keys()]
        found = [] if all(bounds) else [path]
    return found + [
        deeper
        for key, part in schema.items()
        for deeper in numbers_without_bounds(part, path if key in KEYWORDS else f"{path}/{key}")
    ]


KEYWORDS = ("properties", "anyOf", "items", "prefixItems", "additionalProperties", "$defs")


@pytest.mark.parametrize("table", TABLES)
def test_every_number_that_people_write_has_two_bounds(table: type[BaseModel]) -> None:
    """A field without them takes numbers that some array, or some clock, does not."""
    assert numbers_without_bounds(table.model_json_schema(), table.__name__) == []
    assert table.model_config["strict"] and not table.model_config["allow_inf_nan"]
