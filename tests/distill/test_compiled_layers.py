"""Compiled decoder layers train as the layers do; where they cannot, the training says why and goes on without them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from essence.distill import compiled_layers
from essence.distill.adapters import add_adapters
from essence.distill.attention import attend_rows
from essence.distill.compiled_layers import CheckedLayers, decoder_layers, settle_layers
from essence.distill.ranks import ALONE
from essence.distill.storage import TrainResult
from essence.distill.teachers import LiveTeacher
from essence.progress import Stopped, StopRequest
from essence.settings import LoraSettings
from essence.settings.training import RolloutSettings
from support.rank_program import LORA
from support.small_training import ActAfter, model, run, settings
from support.some_resources import some_view

WITHOUT_CODE = "aot_eager_decomp_partition"
"""All of PyTorch's compiler but the code that it writes."""
AS_RELEASED: dict[str, Any] = {"view": some_view(left_pad_multiple=16), "packing": True}
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 2e-6, 2e-5


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing compiled before counts here, and the other way round."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_layers, "COMPILER", WITHOUT_CODE)


def trained(work: Path, compiled: bool, lora: bool = False, **changes: Any) -> TrainResult:
    student = model(0)
    if lora:
        add_adapters(student, LoraSettings.model_validate(LORA), 3)
        changes["lora"] = LORA
    dtype = torch.bfloat16 if changes.get("compute_dtype") == "bfloat16" else torch.float32
    return run(work, student, model(1, hidden=24).to(dtype), compile_layers=compiled, **changes)


def losses(result: TrainResult) -> list[float]:
    lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    return [line["loss" if line["kind"] == "step" else "ce"] for line in lines]


def assert_same_bits(one: TrainResult, other: TrainResult) -> None:
    weights, expected = load_file(one.last_weights), load_file(other.last_weights)
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_training_in_bfloat16_and_its_resumption(tmp_path: Path) -> None:
    """As under protocol `released`, with the code that the compiler writes: the curve of float32, the same kernels from
    the check to the end, and after a stop the same bits."""
    exact = trained(tmp_path / "exact", compiled=False, **AS_RELEASED)
    lower = {**AS_RELEASED, "compute_dtype": "bfloat16", "recomputed": True, "compile_layers": True}
    result = trained(tmp_path / "compiled", compiled=True, **{k: v for k, v in lower.items() if k != "compile_layers"})
    layers = result.layers
    assert layers.student and layers.teacher and not layers.fell_back
    assert [one.model for one in layers.parity] == ["student", "teacher"] and all(one.passed for one in layers.parity)
    assert losses(result) == pytest.approx(losses(exact), abs=2e-2)
    assert counters["stats"]["unique_graphs"] == sum(one.graphs for one in layers.parity), "compiled after the check"
    stop = StopRequest()

    def ask() -> None:
        stop.signal_name = "SIGTERM"

    teacher = model(1, hidden=24).bfloat16()
    with pytest.raises(Stopped):
        run(tmp_path / "again", model(0), teacher, stop, ActAfter(tmp_path / "progress.json", 3, ask), **lower)
    resumed = run(tmp_path / "again", model(5), model(1, hidden=24).bfloat16(), **lower)
    assert_same_bits(resumed, result)
    assert losses(resumed) == losses(result)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("without_code")
@pytest.mark.parametrize(
    "changes",
    [{"view": some_view(left_pad_multiple=16)}, {**AS_RELEASED, "lora": True}],
    ids=["in rows", "adapters"],
)
def test_float32_is_that_of_the_layers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """And the layers are recomputed to the same bits."""
    eager = trained(tmp_path / "eager", compiled=False, **changes)
    result = trained(tmp_path / "compiled", compiled=True, **changes)
    assert result.layers.student and result.layers.teacher and eager.layers == CheckedLayers()
    assert counters["stats"]["unique_graphs"] == sum(one.graphs for one in result.layers.parity)
    assert losses(result) == pytest.approx(losses(eager), abs=LOSS_TOLERANCE)
    weights, expected = load_file(result.last_weights), load_file(eager.last_weights)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0.0, atol=WEIGHT_TOLERANCE)
    saving = trained(tmp_path / "saving", compiled=True, recomputed=True, **changes)
    assert_same_bits(saving, result)


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    # A monkeypatch of the nested setting would remove it afterwards, for the whole process.
    with config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):
        result = trained(tmp_path / "compiled", compiled=True, packing=True)
    student, teacher = result.layers.fell_back
    assert student.startswith("the student's layers cannot be compiled on this machine (")
    assert teacher.startswith("the teacher's layers") and not (result.layers.student or result.layers.teacher)
    assert_same_bits(result, trained(tmp_path / "eager", compiled=False, packing=True))


def test_wrong_kernels_are_not_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Any, _: Any) -> Any:
        return lambda *arguments: tuple(one * 1.01 for one in graph(*arguments))

    monkeypatch.setattr(compiled_layers, "COMPILER", wrong)
    result = trained(tmp_path / "compiled", compiled=True, packing=True)
    assert "student's compiled layers are 1.0e-02 from exact ones, at most" in result.layers.fell_back[0]
    assert_same_bits(result, trained(tmp_path / "eager", compiled=False, packing=True))


def test_layers_that_are_brought_together_stay_as_they_are() -> None:
    student, teacher = model(0), model(1)
    chosen = settings(parallel="zero3", processes=1, teacher_placement="offloaded", compile_layers=True)
    found = settle_layers(student, LiveTeacher(teacher), chosen, True, 1, ALONE)
    assert not found.student and not found.teacher and found.parity == ()
    assert "parallel = 'zero3'" in found.fell_back[0] and "where it is offloaded" in found.fell_back[1]
    says = settings(rollouts=RolloutSettings(every_steps=1, temperature=1.0), compile_layers=True)
    assert "its own rollouts" in settle_layers(student, None, says, True, 1, ALONE).fell_back[0]
    assert all(layer._compiled_call_impl is None for one in (student, teacher) for layer in decoder_layers(one))


def test_a_model_without_a_list_of_layers_is_named() -> None:
    strange = torch.nn.Linear(2, 2)
    strange.base_model = SimpleNamespace()  # type: ignore[assignment]
    found = settle_layers(strange, None, settings(compile_layers=True), False, 1, ALONE)
    assert found.fell_back == ("the student (Linear) has no list of layers to compile",)


def test_rows_are_one_operation_to_the_compiler() -> None:
    draws = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 12, 8, generator=draws, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2)
    )
    starts = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    torch.library.opcheck(attend_rows, (query, key, value, starts, 0.3))
