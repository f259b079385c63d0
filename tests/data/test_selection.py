"""Length filter, split, and the comparison with published row positions."""

import hashlib
from typing import Any

import numpy as np
import pytest

from essence.distill.row_split import describe_positions, describe_selection, select_rows
from essence.errors import InputError
from essence.plan.cells import train_settings
from essence.plan.experiment import load
from essence.settings import PublishedRows, RowsSettings


def selection(**changes: int) -> RowsSettings:
    return RowsSettings.model_validate(
        {"max_row_tokens": 100, "train_rows": 20, "validation_rows": 10, "split_seed": 42, **changes}
    )


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_split_equals_the_datasets_library(seed: int) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    lengths = np.random.default_rng(5).integers(1, 160, 300)
    kept = [i for i, length in enumerate(lengths) if length < 100]
    whole = datasets.Dataset.from_dict({"row": list(range(300))})
    parts = whole.select(kept).train_test_split(test_size=10, seed=seed)
    found = select_rows(lengths, selection(split_seed=seed))
    assert found.train.tolist() == parts["train"]["row"][:20]
    assert found.validation.tolist() == parts["test"]["row"]
    assert found.kept.tolist() == kept


def test_too_few_rows_says_how_many_and_which_keys() -> None:
    with pytest.raises(InputError, match=r"29 rows .* train_rows = 20 and validation_rows = 10 need 30"):
        select_rows([99] * 29 + [100], selection())
    assert select_rows([99] * 30, selection()).train.size == 20


def published(kept: list[int], train: list[int], validation: list[int]) -> PublishedRows:
    """The record as it is published: hash and numbers made here, not by the code under test."""

    def numbers(positions: list[int]) -> dict[str, Any]:
        text = ",".join(str(position) for position in positions)
        return {"rows": len(positions), "sha256": hashlib.sha256(text.encode()).hexdigest()}

    ends = {"smallest": min(kept), "largest": max(kept), "sum": sum(kept)}
    return PublishedRows.model_validate(
        {
            "kept": {**numbers(kept), **ends},
            "train": {**numbers(train), "first": train[:5]},
            "validation": {**numbers(validation), "first": validation[:5]},
        }
    )


def test_the_record_says_in_one_word_whether_the_positions_are_the_published_ones() -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    positions = np.arange(0, 400, 2)  # every other row was rejected, so indices are not positions
    lengths = np.random.default_rng(6).integers(1, 160, 200)
    kept = [int(p) for p, length in zip(positions, lengths, strict=True) if length < 100]
    whole = datasets.Dataset.from_dict({"row": list(range(400))})
    parts = whole.select(kept).train_test_split(test_size=10, seed=42)
    known = published(kept, parts["train"]["row"][:20], parts["test"]["row"])
    found = describe_selection(positions, select_rows(lengths, selection()), known)
    assert found.published == "equal"
    assert found.differs == {}
    assert found.kept.sum == sum(kept)

    other = describe_selection(positions, select_rows(lengths, selection(train_rows=19)), known)
    assert other.published == "different"
    assert other.differs["train"]["rows"] == (19, 20)
    assert set(other.differs) == {"train"}
    longer = describe_selection(positions, select_rows(lengths, selection(max_row_tokens=120)), known)
    assert longer.published == "different"
    assert longer.differs["kept"]["rows"] == (int(np.count_nonzero(lengths < 120)), len(kept))
    assert describe_selection(positions, select_rows(lengths, selection()), None).published == "not published"


def test_positions_are_told_by_documented_numbers() -> None:
    record = describe_positions(np.array([5, 3, 11]))
    assert (record.rows, record.smallest, record.largest, record.sum, record.first) == (3, 3, 11, 19, [5, 3, 11])
    assert record.sha256 == hashlib.sha256(b"5,3,11").hexdigest()


@pytest.mark.parametrize(("name", "kept"), [("bespoke", 9354), ("openthoughts", 42010), ("skyt1", 9299)])
def test_published_fingerprints_reach_the_settings_of_a_cell(name: str, kept: int) -> None:
    loaded = load(name)
    rows = train_settings(loaded.cells()[0], loaded.experiment).rows
    assert isinstance(rows.published, PublishedRows)
    assert rows.published.kept.rows == kept
    assert rows.published.train.rows == rows.train_rows
    assert rows.published.validation.rows == rows.validation_rows


def test_what_is_not_published_is_not_claimed() -> None:
    assert train_settings(load("tiny").cells()[0], load("tiny").experiment).rows.published is None


@pytest.mark.parametrize("name", ["nemotron", "synthetic1"])
def test_a_list_that_was_not_read_is_no_list_that_is_not_published(name: str) -> None:
    published = train_settings(load(name).cells()[0], load(name).experiment).rows.published
    assert published == "not read"
    found = describe_selection(np.arange(40), select_rows(np.full(40, 9), selection()), published)
    assert (found.published, found.differs) == ("published, not read by the kit", {})
