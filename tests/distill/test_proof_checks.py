"""The checks of a proof: what they count, and what they say where nothing can be compared."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from essence.errors import MachineError
from essence.files import GIB
from essence.plan.experiment import load
from essence.plan.proof_plan import proof_plan
from essence.progress import Progress, StopRequest
from essence.record.run_directory import RunDirectory
from essence.settings import LoraSettings, Resources
from essence.settings.proving import ProveTrainingSettings
from essence.sizes.architecture import Architecture, adapter_parameters
from support.proof_settings import asked
from support.stage_inputs import context

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.distill import attention, preflight, proof_checks, proof_equalities, proof_trainings  # noqa: E402
from essence.distill.proof_steps import Steps, alone, as_pair, rule_bytes, small  # noqa: E402
from essence.distill.ranks import ALONE  # noqa: E402
from essence.distill.trainer import DivergedError, train  # noqa: E402
from essence.stages import prove_rank, prove_steps  # noqa: E402

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def at_full_size(folder: Path) -> tuple[ProveTrainingSettings, Resources]:
    loaded = load("bespoke")
    plan = proof_plan(loaded, loaded.cells()[0], lambda _: {}, RunDirectory(folder), "2026-01-01T00:00:00")
    stage = next(iter(plan.stages.values()))
    assert isinstance(stage.settings, ProveTrainingSettings)
    return stage.settings, stage.resources


def never(*_: object) -> None:
    """A first attempt that is killed before it has done anything."""


def test_one_number_that_is_none_makes_a_curve_none() -> None:
    """Wherever it stands: Python's max keeps the first of two that cannot be compared."""
    for curve in ([math.nan, 0.9, 0.8], [1.0, math.nan, 0.8], [1.0, 0.9, math.nan]):
        distance = proof_checks.numbers_apart(curve, [1.0, 0.9, 0.8])
        assert math.isnan(distance) and math.isnan(proof_checks.numbers_apart([1.0, 0.9, 0.8], curve))
        assert not proof_checks.bounded("x", "these", distance, 1.0, "y").passed
    assert proof_checks.numbers_apart([1.0, 0.9], [1.0, 0.9]) == 0.0


def test_what_is_compared_is_how_weights_moved() -> None:
    """By the tenth of a percent that a few steps change; weights that are no number, or never moved, are not equal."""
    losses, one = [1.0, 0.9], torch.ones(2)

    def went(*after: float) -> proof_checks.Went:
        return proof_checks.Went(losses, [one, one], [one * number for number in after])

    whole, lost, nothing = went(1.001, 1.001), went(1.001, 1.0), went(1.0, 1.0)
    assert proof_checks.moved_apart(whole, whole) == 0.0
    assert proof_checks.moved_apart(lost, whole) == pytest.approx(0.5**0.5, rel=1e-3)
    assert proof_checks.moved_apart(nothing, whole) == pytest.approx(1.0)
    bound = proof_checks.Distance(0.0, 0.25)
    for wrong in (lost, nothing, went(1.001, math.nan)):
        assert not proof_checks.compared("resume", "both", (wrong, whole), bound, "cure").passed
    assert not proof_checks.compared("resume", "both", (nothing, nothing), bound, "cure").passed
    assert proof_checks.compared("resume", "both", (whole, whole), proof_checks.Distance(0.0, 0.0), "cure").passed


def test_packed_rows_that_see_each_other_are_caught_in_bfloat16_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    lower, right = training.model_copy(update={"compute_dtype": "bfloat16"}), attention.row_attention

    def sees_all(*given: Any, row_starts: object = None, longest_row: object = None, **more: Any) -> Any:
        del row_starts, longest_row
        return right(*given, **more)

    (tmp_path / "right").mkdir()
    found = proof_trainings.training_findings(lower, resources, CPU, tmp_path / "right", never)
    assert all(one.passed for one in found), found
    monkeypatch.setattr(attention, "row_attention", sees_all)
    (tmp_path / "wrong").mkdir()
    wrong = proof_trainings.training_findings(lower, resources, CPU, tmp_path / "wrong", never)
    assert [one.name for one in wrong if not one.passed] == ["packing"]


def test_checks_are_of_exact_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever trainings let a GPU do: seen inside each of them."""
    training, resources, seen = asked(tmp_path)[0], context(tmp_path / "x").resources, list[str]()

    class Seen(Exception):
        pass

    def look(*_: object, **__: object) -> None:
        seen.append(torch.get_float32_matmul_precision())
        raise Seen

    places = ((proof_trainings, "train"), (proof_checks, "objective_from_states"), (proof_equalities, "_attended"))
    for module, name in (*places, (proof_equalities, "Steps"), (prove_rank, "Steps")):
        monkeypatch.setattr(module, name, look)
    little = small(training)
    settings, rows = alone(little), proof_trainings.rows_of_short_training(little)
    ends = Progress(tmp_path / "progress.json"), StopRequest()
    torch.set_float32_matmul_precision("high")
    try:
        for work in (
            lambda: proof_trainings.attempt(little, settings, resources, CPU, rows, tmp_path / "work", *ends),
            lambda: proof_checks.loss_finding(training, resources, CPU),
            lambda: proof_equalities.attention_finding(training, CPU),
            lambda: proof_equalities.repeat_findings(training, resources, CPU),
            lambda: prove_rank.steps_of(training, resources, CPU, ALONE, 2),
        ):
            with pytest.raises(Seen):
                work()
        assert seen == ["highest"] * 5 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_other_form_ends_where_memory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The chosen form was measured before, and stays."""
    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    little = small(training).model_copy(update={"lengths": [16, 32, 48]})
    steps, right = Steps(as_pair(little), alone(little), resources, CPU), Steps.timed

    def full(one: Steps, parts: Any, repeats: int) -> Any:
        if parts[0][0].input_ids.size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(one, parts, repeats)

    monkeypatch.setattr(Steps, "timed", full)
    found = prove_steps.other_form(steps, resources, little.lengths, True, 1, StopRequest())
    assert [(one.tokens, one.recomputed) for one in found] == [(16, True)]
    assert "steps with recomputed activations ended at 32 tokens: no memory is left" in caplog.text
    with (
        pytest.raises(MachineError, match="ran out of memory while it was measured"),
        proof_checks.explained_measuring(),
    ):
        prove_steps.measured_steps(steps, resources, list(prove_steps.loads_of([32], 512, False)), 1, StopRequest())


def test_a_training_that_diverges_is_a_check_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 alone; what the others say of each other stands."""
    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    right = train

    def breaks(*given: object, **named: object) -> object:
        if given[4].compute_dtype == "bfloat16":  # type: ignore[attr-defined]
            raise DivergedError("step 3 of 4: loss nan, gradient norm nan, on rows [1, 2]")
        return right(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(proof_trainings, "train", breaks)
    found = {one.name: one for one in proof_trainings.training_findings(training, resources, CPU, tmp_path, never)}
    assert [name for name, one in found.items() if not one.passed] == ["bfloat16"]
    told = found["bfloat16"].sentence
    assert "one diverged (step 3 of 4: loss nan" in told and 'compute_dtype = "float32"' in told


def test_a_loss_that_has_no_room_in_float64_is_a_check_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources

    def full(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(proof_checks, "objective_from_states", full)
    found = proof_checks.loss_finding(training, resources, CPU)
    assert not found.passed and "do not fit the" in found.sentence and "take a larger one" in found.sentence


def test_the_memory_check_takes_the_largest_pass_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four whole rows of one process, as many in a pass as its tokens hold."""
    training, resources = at_full_size(tmp_path)
    one = training.model_copy(update={"parallel": "single", "processes": 1, "teacher_placement": "replicated"})
    monkeypatch.setattr(preflight, "memory_bytes", lambda _: 1 << 20)
    longest = max(one.lengths)
    for rows in (1, 2, 4):
        held = resources.model_copy(update={"micro_batch_tokens": rows * longest, "activation_checkpointing": "on"})
        needed = rule_bytes(as_pair(one), alone(one), held, rows * longest)
        assert f"needs {needed / GIB:.3g} of" in proof_checks.memory_finding(one, held, CUDA).sentence


def test_main_memory_is_that_of_the_ranks_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks with an offloaded teacher each: two machines hold four of them, one machine all eight."""
    training, resources = at_full_size(tmp_path)
    eight = training.model_copy(update={"processes": 8, "teacher_placement": "offloaded"})
    monkeypatch.setattr(preflight, "memory_bytes", lambda _: 1 << 50)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=150 * GIB))
    alone_, shared = (
        proof_checks.memory_finding(eight.model_copy(update={"machines": machines}), resources, CUDA)
        for machines in (1, 2)
    )
    assert not alone_.passed and "free main memory" in alone_.sentence and shared.passed, (alone_, shared)


def test_a_checkpoint_has_what_is_trained_alone(tmp_path: Path) -> None:
    """Adapters where there are any; the bound is told as it is, and the cure is enough."""
    training, resources = at_full_size(tmp_path)
    student = Architecture(**training.student_sizes.model_dump())
    adapters = LoraSettings(rank=8, alpha=16.0, targets=["q_proj"])
    for asked_for, parameters in ((training, student.parameters), (
        training.model_copy(update={"lora": adapters}), adapter_parameters(student, adapters)
    )):  # fmt: skip
        slow = 12 * parameters / 16.0  # bytes a second: sixteen seconds a checkpoint
        for every, passed in ((0.0, False), (5.0, False), (60.0, False), (64.0, True)):
            some = resources.model_copy(update={"checkpoint_every_s": every})
            found = proof_checks.disk_finding(asked_for, some, slow)
            assert found.passed == passed, found
            if not passed:
                assert "at most 15 s is right (a quarter of checkpoint_every_s, which counts as 60 s" in found.sentence
                assert found.sentence.endswith("to at least 64")
