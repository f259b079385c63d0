"""Where a compiled layer meets a call that it cannot be compiled for, the training goes on with the layer as it is."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
from safetensors.torch import load_file
from torch import Tensor

from essence.distill import compiled_layers, trainer
from essence.distill.compiled_layers import compile_layer, decoder_layers, settle_layers
from essence.distill.late_graphs import LateFailures, UncompiledError, must_run_alike
from essence.distill.ranks import ALONE, Ranks
from essence.distill.storage import Storage
from essence.distill.teachers import LiveTeacher
from essence.progress import StopRequest
from essence.stages.launch import REPORTS, run_here, why_ended
from support.late_rank_program import LAYERS, WORK
from support.planted_compiler import Planted
from support.project import PROJECT
from support.small_training import AS_RELEASED, RESOURCES, metrics_without_time, model, run, settings

WIDTH_OF_A_SIZE = (5, 11)
"""Tokens of the checked rows that make a packed width of 16, which is the hidden size too: every other width is new."""
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TwoWeights(torch.nn.Module):
    """PyTorch's own modules are not compiled alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight


def guarded(monkeypatch: pytest.MonkeyPatch, compiler: Any, alike: bool = False) -> tuple[TwoWeights, LateFailures]:
    """A compiled layer that was called with two dimensions."""
    monkeypatch.setattr(compiled_layers, "COMPILER", compiler)
    layer, failures = TwoWeights(), LateFailures()
    compile_layer(layer)
    failures.guard("student", [layer], alike)
    layer(torch.ones(3, 2)).sum().backward()
    return layer, failures


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_call_that_cannot_be_compiled_runs_as_it_is(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Planted(part)
    layer, failures = guarded(monkeypatch, compiler)
    assert compiler.runs == 2 and failures.why == {}
    compiler.broken = True
    for _ in range(2):  # of three dimensions, which are new
        layer.weight.grad = None
        layer(torch.ones(3, 2, 2)).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.tolist() == [6.0, 6.0]
    assert compiler.tries == 1 and compiler.runs == 2, "tried once, and nothing of it was used"
    layer(torch.ones(5, 2)).sum().backward()
    assert compiler.runs == 4, "what was compiled before goes on"
    assert failures.why == {
        "student": "the student's layers cannot be compiled for a pass of another form than those that were checked "
        "(3 x 2 x 2: no kernel for this one): such passes run as they are"
    }
    said = [record.getMessage() for record in caplog.records if record.name == "essence.distill.late_graphs"]
    assert said == list(failures.why.values())


def test_a_fault_of_what_was_compiled_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Planted("forward")
    layer, failures = guarded(monkeypatch, compiler)

    compiler.faulty = True
    with pytest.raises(ArithmeticError, match="a fault of the kernel itself"):
        layer(torch.ones(4, 2))
    assert failures.why == {}


def test_a_training_goes_on_where_a_backward_pass_cannot_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the recomputation of activations, too."""
    compiler = Planted("backward")

    def settled(*given: Any) -> Any:
        found = settle_layers(*given)
        compiler.broken = True
        return found

    monkeypatch.setattr(compiled_layers, "CHECKED_LENGTHS", WIDTH_OF_A_SIZE)
    monkeypatch.setattr(compiled_layers, "COMPILER", compiler)
    monkeypatch.setattr(trainer, "settle_layers", settled)
    teacher = model(1, hidden=24)
    result = run(tmp_path / "compiled", model(0), teacher, compile_layers=True, recomputed=True, packing=True)
    assert result.layers.student and result.layers.teacher and compiler.tries == 1
    (why,) = result.layers.fell_back
    assert why.startswith("the student's layers cannot be compiled for a pass of another form") and "x 16: " in why
    eager = run(tmp_path / "eager", model(0), model(1, hidden=24), packing=True)
    weights, expected = load_file(result.last_weights), load_file(eager.last_weights)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0.0, atol=TOLERANCE)


def test_where_ranks_run_layers_alike_no_rank_goes_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Planted("backward")
    layer, failures = guarded(monkeypatch, compiler, alike=True)
    compiler.broken = True
    with pytest.raises(UncompiledError) as raised:
        layer(torch.ones(3, 2, 2))
    said = str(raised.value)
    assert "(3 x 2 x 2: no kernel for this one), and under parallel = 'zero2' all ranks run them alike; run the" in said
    assert "\n" not in said and failures.why == {}
    layer(torch.ones(5, 2)).sum().backward()
    assert compiler.runs == 4, "what was compiled before is not in doubt"


@pytest.mark.parametrize(
    ("parallel", "processes", "alike"),
    [("zero2", 2, True), ("zero2", 1, False), ("ddp", 2, False), ("zero3", 2, False), ("single", 1, False)],
)
def test_ranks_run_layers_alike_where_gradients_cross_as_they_are_found(
    parallel: str, processes: int, alike: bool
) -> None:
    chosen = settings(parallel=parallel, processes=processes, compile_layers=True)
    assert must_run_alike(chosen, Ranks(0, processes)) is alike


def test_what_any_rank_has_noted_counts_from_the_first_step_on(tmp_path: Path) -> None:
    """Two ranks, of which the second could not compile after four steps; later the first, which had not read that."""
    assert Storage(tmp_path, RESOURCES).uncompiled() is None
    for rank, step in ((1, 4), (0, 7)):
        storage = Storage(tmp_path, RESOURCES, Ranks(rank, 2))
        storage.checkpointed_step = step
        storage.note_uncompiled(f"no kernel on rank {rank}")
    assert Storage(tmp_path, RESOURCES).uncompiled() == "no kernel on rank 1: from step 5 on none is compiled"


def test_what_an_earlier_attempt_could_not_compile_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled_layers, "COMPILER", Planted("forward"))
    student, teacher = model(0), model(1, hidden=24)
    found = settle_layers(student, LiveTeacher(teacher), settings(compile_layers=True), False, 1, ALONE, "no kernel")
    assert (found.student, found.teacher, found.fell_back) == (False, True, ("no kernel",))
    assert [one.model for one in found.parity] == ["teacher"]
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(student))
    assert "no kernel: these layers run as they are" in caplog.text


@pytest.mark.slow
def test_the_next_start_compiles_on_no_rank_what_one_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes under zero2, of which the first cannot compile any more after three steps. When that one went on
    alone, the gradient's norm was 5e-3 off in the next step, without a word."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT), str(PROJECT / "tests")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "two").mkdir()

    def start() -> dict[int, int]:
        return run_here(2, 1, tmp_path / "two", StopRequest(), "support.late_rank_program")

    failed = why_ended(start(), 2, tmp_path / "two" / REPORTS)
    assert isinstance(failed, UncompiledError) and "no kernel for this one" in failed.problem
    assert start() == {0: 0, 1: 0}
    told = json.loads((tmp_path / "two" / LAYERS).read_text())
    assert not told["student"] and told["fell_back"] == [f"{failed.problem}: from step 4 on none is compiled"]
    run(tmp_path / "single", model(0), **AS_RELEASED)
    two, one = (
        [record for record in metrics_without_time(file / "metrics.jsonl") if record["kind"] == "step"]
        for file in (tmp_path / "two" / WORK, tmp_path / "single")
    )
    assert [record["step"] for record in two] == [1, 2, 3, 4, 5, 6] and len(one) == 6
    for name in ("loss", "gradient_norm"):
        assert [step[name] for step in two] == pytest.approx([step[name] for step in one], abs=2e-6, rel=1e-5), name
