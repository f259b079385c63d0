"""Orders, steps and the choice of a checkpoint against plain versions of what the released code does."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.data import DistributedSampler

from essence.data.truncation import Places, SkipReason, collect, within_budget
from essence.distill.checkpoint_choice import choose, improves, rank_means, remembered, validation_parts, watched
from essence.distill.order import epoch_order, steps_of_training
from essence.distill.row_split import describe_order
from essence.plan.experiment import load
from essence.record.recount import METRIC_LINE, _training
from essence.record.training_records import TrainResults
from essence.settings import OrderSettings, PublishedRows
from essence.settings.protocol import PROTOCOLS
from support.small_training import AS_RELEASED, PAD, RESOURCES, TRAIN, ActAfter, examples, model, run, settings

RELEASED = OrderSettings(seed=42, multiple=4)


class Rows:
    """A data set with this number of rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows


def sampled(rows: int, rank: int, epoch: int | None = None) -> list[int]:
    """What torch deals to one of four ranks; in order where no epoch is given, as for validation rows."""
    sampler: Any = DistributedSampler(Rows(rows), 4, rank, shuffle=epoch is not None, seed=42, drop_last=False)  # type: ignore[arg-type]
    sampler.set_epoch(epoch or 0)
    return list(sampler)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9, 10, 27, 96, 1000, 1001, 8000])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_the_order_is_what_torch_deals_to_four_ranks_taken_together(rows: int, epoch: int) -> None:
    order = epoch_order(rows, RELEASED, epoch)
    assert [order[rank::4] for rank in range(4)] == [sampled(rows, rank, epoch) for rank in range(4)]
    parts = validation_parts(rows, 4)
    assert parts == [sampled(rows, rank) for rank in range(4)]


@pytest.mark.parametrize(
    ("rows", "epoch", "sha256"),
    [
        (8000, 0, "c67d4033b941b7052457a92bc84c96d81f051914ff6ec0740a7fd6bdfc7d9578"),
        (8000, 1, "e9cfa66ef0cc3ad8fd7300ea966d40ca7d1357c79bc04b3ffc8a617ea764b93d"),
        (40000, 0, "d6303a3ffa6c6a349437bc113968554570e7fd0593a8fef183ef0ac95191fa65"),
        (40000, 1, "03fc1951966f8f368edc9797b4808a76548f249f9ba4e3da72abece71b98c202"),
    ],
)
def test_no_version_of_torch_changes_an_order_in_silence(rows: int, epoch: int, sha256: str) -> None:
    """With the published lists of positions these are the six orders of experiments/fingerprints.toml."""
    text = ",".join(str(place) for place in epoch_order(rows, RELEASED, epoch))
    assert hashlib.sha256(text.encode()).hexdigest() == sha256


def test_six_orders_are_published() -> None:
    data = load("bespoke").experiment.data
    known = {name: section.published for name, section in data.items() if not isinstance(section.published, str | None)}
    assert {name: len(published.orders) for name, published in known.items()} == {
        "bespoke": 2,
        "openthoughts": 2,
        "skyt1": 2,
    }
    assert all(order.rows == published.train.rows for published in known.values() for order in published.orders)


def test_a_row_that_is_left_out_changes_its_own_step_alone() -> None:
    optimizer = settings().optimizer
    whole = collect(examples(12))
    lacking = collect([SkipReason.NO_MARKER if place in (3, 11) else row for place, row in enumerate(examples(12))])
    assert (lacking.places.rows, list(lacking.places.places)) == (12, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10])
    all_steps, steps = (
        [
            [[found.examples[index].row for index in step] for step in epoch]
            for epoch in steps_of_training(found.examples, found.places, optimizer, RELEASED)
        ]
        for found in (whole, lacking)
    )
    left_out = {1003, 1011}
    assert steps == [[[row for row in step if row not in left_out] for step in epoch] for epoch in all_steps]
    assert [len(epoch) for epoch in all_steps] == [3, 3] and all_steps[0] != all_steps[1]


@given(st.integers(1, 60), st.sampled_from([4, 8]), st.integers(1, 3), st.sets(st.integers(0, 59)))
def test_steps_are_those_of_four_loaders(rows: int, batch_rows: int, epochs: int, left_out: set[int]) -> None:
    """Each of four GPUs reads `batch_rows / 4` rows of its own share a step; the last step may have fewer."""
    drawn = [SkipReason.NO_MARKER if place in left_out else row for place, row in enumerate(examples(rows))]
    kept = collect(drawn)
    optimizer = settings().optimizer.model_copy(update={"epochs": epochs, "batch_rows": batch_rows})
    found = steps_of_training(kept.examples, kept.places, optimizer, RELEASED)
    each = batch_rows // 4
    for epoch, steps in enumerate(found):
        shares = [sampled(rows, rank, epoch) for rank in range(4)]
        expected = []
        for first in range(0, len(shares[0]), each):
            places = [place for share in shares for place in share[first : first + each] if place not in left_out]
            expected.append(sorted(1000 + place for place in places))
        told = [sorted(kept.examples[index].row for index in step) for step in steps]
        assert told == [step for step in expected if step]


def test_rows_of_a_token_budget_are_shuffled_among_themselves() -> None:
    """The budget takes the first rows of the split; an epoch's order is of these, those without labels included."""
    rows = examples(10)
    outcomes = [SkipReason.NO_MARKER if place == 1 else row for place, row in enumerate(rows)]
    budget = sum(rows[place].input_ids.size for place in (0, 2, 3, 4))
    found = collect(within_budget(outcomes, budget))
    assert (found.places.rows, list(found.places.places)) == (5, [0, 2, 3, 4])
    for epoch, steps in enumerate(steps_of_training(found.examples, found.places, settings().optimizer, RELEASED)):
        read = [found.examples[index].row - 1000 for step in steps for index in step]
        assert read == [place for place in epoch_order(5, RELEASED, epoch) if place != 1]


def test_steps_of_tokens_follow_the_order_of_each_epoch() -> None:
    optimizer = settings().optimizer.model_copy(update={"batch_tokens": 80})
    order = OrderSettings(seed=3, multiple=1)
    for epoch, steps in enumerate(steps_of_training(TRAIN, Places.of(TRAIN), optimizer, order)):
        assert [index for step in steps for index in step] == epoch_order(10, order, epoch)
        assert all(sum(TRAIN[index].input_ids.size for index in step) <= 80 for step in steps)


def plain_choice(curve: list[list[float]]) -> int | None:
    """ModelCheckpoint(save_top_k=1) on four ranks, step by step, as Lightning 2.6.0 was seen to do it."""
    best: list[torch.Tensor] = []
    kept = None
    for index, losses in enumerate(curve):
        current = [torch.tensor(loss) for loss in losses]
        if best and sum(bool(torch.lt(new, old)) for new, old in zip(current, best, strict=True)) < len(losses):
            continue
        best = [torch.tensor(float("inf")) if torch.isnan(loss) else loss for loss in current]
        kept = index
    return kept


LOSS = st.sampled_from([0.25, 0.5, 0.75, 1.0, math.nan, math.inf])


@given(st.lists(st.lists(LOSS, min_size=4, max_size=4), max_size=12))
def test_the_choice_is_that_of_four_ranks(curve: list[list[float]]) -> None:
    assert choose(curve) == plain_choice(curve)


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=12))
def test_one_rank_chooses_the_lowest_mean_and_the_first_of_equal_ones(curve: list[float]) -> None:
    assert choose([[loss] for loss in curve]) == curve.index(min(curve))


def test_recorded_curves_of_lightning() -> None:
    """Made-up losses that were given to Lightning 2.6.0 on four processes; it wrote where this says so."""
    nan, inf = math.nan, math.inf
    paper = [[1.0] * 4, [0.9] * 4, [0.4, 0.4, 0.4, 1.25], [0.8] * 4, [0.65, 0.65, 0.65, 1.0]]
    assert [sum(losses) / 4 for losses in paper] == pytest.approx([1.0, 0.9, 0.6125, 0.8, 0.7375])
    assert saves(paper) == [1, 2, 4]
    assert saves([[nan] * 4, [nan, 1, 1, 1], [2] * 4, [1, 1, 1, inf], [1] * 4, [1] * 4]) == [1, 3, 5]
    assert saves(
        [
            [nan, 1, 1, 1],
            [0.9] * 4,
            [0.8, nan, 0.8, 0.8],
            [0.7] * 4,
            [0.6, 0.6, 0.6, 0.7],
            [0.5] * 4,
            [0.5, 0.4, 0.4, 0.4],
            [0.4] * 4,
            [nan] * 4,
            [0.3] * 4,
        ]
    ) == [1, 2, 4, 6, 8, 10]


def saves(curve: list[list[float]]) -> list[int]:
    """Numbers of the validations at which weights are kept."""
    found: list[int] = []
    kept: list[float] | None = None
    for number, losses in enumerate(curve, 1):
        if improves(losses, kept):
            found.append(number)
            kept = remembered(losses)
    return found


@given(st.integers(1, 30), st.integers(1, 6), st.sets(st.integers(0, 29)), st.integers(0, 99))
def test_means_of_the_ranks_are_over_their_own_rows(rows: int, ranks: int, left_out: set[int], seed: int) -> None:
    loss = np.random.default_rng(seed).random(rows).tolist()
    here = [place for place in range(rows) if place not in left_out]
    keys = watched(Places(here, rows), ranks)
    assert sorted(index for own in keys.values() for index in own) == list(range(len(here)))
    sums = {key: (sum(loss[here[index]] for index in own), len(own)) for key, own in keys.items()}
    expected = []
    for rank in range(ranks):
        own = [loss[place] for place in validation_parts(rows, ranks)[rank] if place not in left_out]
        expected += [sum(own) / len(own)] if own else []
    assert rank_means(sums, ranks) == pytest.approx(expected)


@pytest.fixture(scope="module")
def of_four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training whose checkpoint is chosen by four ranks, on 7 validation rows, and the validations one by one."""
    folder = tmp_path_factory.mktemp("ranks")
    student = model(0)
    result = run(folder / "work", student, validation=examples(7, seed=2), **BY_RANKS)
    return student, result


BY_RANKS: dict[str, Any] = {**AS_RELEASED, "validations_per_epoch": 3}


def test_a_training_keeps_the_weights_that_the_ranks_choose(of_four_ranks: Any) -> None:
    _, result = of_four_ranks
    parts = [record.parts for record in result.validations]
    chosen = result.validations[choose(parts) or 0]
    lowest = min(result.validations, key=lambda record: record.ce)
    assert (result.best_step, result.best_validation_ce) == (chosen.step, chosen.ce)
    assert (result.lowest_step, result.lowest_validation_ce) == (lowest.step, lowest.ce)
    assert result.best_weights is not None and result.best_weights.name == f"best-{chosen.step:08d}.safetensors"
    rows = examples(7, seed=2)
    student, losses = model(9), []
    student.load_state_dict(load_file(result.best_weights), strict=False)
    for row in rows:  # padded on the left to a multiple of 16, as the released collator does
        pads = -row.input_ids.size % 16
        ids = torch.from_numpy(np.concatenate([[PAD] * pads, row.input_ids])).long()[None]
        mask = torch.tensor([[0] * pads + [1] * row.input_ids.size])
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = student(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0]
        at = pads + np.flatnonzero(row.supervised)
        losses.append(torch.nn.functional.cross_entropy(logits[at - 1], ids[0, at]).item())
    own = [[0, 4], [1, 5], [2, 6], [3, 0]]  # the eighth place is the first again
    assert chosen.parts == pytest.approx([sum(losses[i] for i in part) / 2 for part in own], rel=1e-5)
    assert chosen.ce == pytest.approx(sum(losses) / 7, rel=1e-5)


def test_killed_in_the_second_epoch_it_goes_on_in_the_same_order(of_four_ranks: Any, tmp_path: Path) -> None:
    student, undisturbed = of_four_ranks
    work, rows = tmp_path / "work", examples(7, seed=2)

    def kill() -> None:
        raise KeyboardInterrupt

    every_step = RESOURCES.model_copy(update={"checkpoint_every_s": 0.0})
    with pytest.raises(KeyboardInterrupt):
        progress = ActAfter(tmp_path / "progress.json", 5, kill)
        run(work, model(0), progress=progress, validation=rows, resources=every_step, **BY_RANKS)
    resumed = model(9)
    result = run(work, resumed, validation=rows, **BY_RANKS)
    weights = dict(student.named_parameters())
    assert [name for name, one in resumed.named_parameters() if not torch.equal(one, weights[name])] == []
    assert result.validations == undisturbed.validations
    assert (result.best_step, result.lowest_step) == (undisturbed.best_step, undisturbed.lowest_step)
    assert result.tokens == undisturbed.tokens


def test_each_step_reads_the_rows_of_the_order(of_four_ranks: Any) -> None:
    _, result = of_four_ranks
    lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    tokens = [line["tokens"] for line in lines if line["kind"] == "step"]
    orders = [epoch_order(10, RELEASED, epoch) for epoch in (0, 1)]
    steps = [order[first : first + 4] for order in orders for first in (0, 4, 8)]
    assert tokens == [sum(TRAIN[place].input_ids.size for place in step) for step in steps]
    assert all(len(step) == 4 for step in steps)  # 10 rows are filled up to 12


def published(orders: list[list[int]]) -> PublishedRows:
    def numbers(positions: list[int]) -> dict[str, Any]:
        text = ",".join(str(position) for position in positions)
        return {"rows": len(positions), "sha256": hashlib.sha256(text.encode()).hexdigest(), "first": positions[:5]}

    one = numbers([1])
    return PublishedRows.model_validate(
        {"kept": one, "train": one, "validation": one, "orders": [numbers(order) for order in orders]}
    )


def test_the_record_says_whether_the_order_is_the_published_one() -> None:
    drawn = np.arange(8, dtype=np.int64) * 3
    released = settings(order=RELEASED.model_dump())
    orders = [
        [int(drawn[place]) for rank in zip(*(sampled(8, r, e) for r in range(4)), strict=True) for place in rank]
        for e in (0, 1)
    ]
    found = describe_order(drawn, released, published(orders))
    assert (found.published, found.differs, len(found.epochs)) == ("equal", {}, 2)
    other = describe_order(drawn, settings(order={"seed": 1, "multiple": 4}), published(orders))
    assert other.published == "different" and set(other.differs) == {"0", "1"}
    longer = settings(order=RELEASED.model_dump())
    longer = longer.model_copy(update={"optimizer": longer.optimizer.model_copy(update={"epochs": 3})})
    assert describe_order(drawn, longer, published(orders)).differs == {"epochs": (3, 2)}
    assert describe_order(drawn, released, None).published == "not published"
    fewer = describe_order(drawn[:7], released, published(orders))
    assert fewer.published == "different"


def test_protocols_differ_in_order_and_choice() -> None:
    found = {
        name: (protocol.order_seed, protocol.order_multiple, protocol.checkpoint_ranks)
        for name, protocol in PROTOCOLS.items()
    }
    assert found == {"released": (42, 4, 4), "corrected": ("cell", 1, 1)}


def test_a_record_with_another_step_is_found_out() -> None:
    curve = [[1.0] * 4, [0.9] * 4, [0.4, 0.4, 0.4, 1.25], [0.8] * 4, [0.65, 0.65, 0.65, 1.0]]
    checks = [{"step": 10 * n, "ce": sum(losses) / 4, "parts": losses} for n, losses in enumerate(curve, 1)]
    written = [{"kind": "step", "step": 50, "loss": 2.0}, *({"kind": "validation", **check} for check in checks)]
    lines = [METRIC_LINE.validate_python(line) for line in written]
    results: dict[str, Any] = {
        "steps": 50,
        "last_loss": 2.0,
        "validations": checks,
        "best_step": 40,
        "best_validation_ce": checks[3]["ce"],
        "lowest_step": 30,
        "lowest_validation_ce": checks[2]["ce"],
    }

    def findings(**changes: Any) -> list[str]:
        return list(_training(TrainResults.model_validate({**results, **changes}), lines))

    assert findings() == []
    third = findings(best_step=30, best_validation_ce=checks[2]["ce"])
    assert ["best_step 30 recorded" in finding for finding in third] == [True]
    assert ["lowest_step 10 recorded" in finding for finding in findings(lowest_step=10)] == [True]
