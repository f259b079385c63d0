"""The check of the fast objective before training: passes if it is correct, and reports the numbers if not."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from essence.distill import chunked
from essence.distill.objective_parity import parity, settle
from essence.distill.ranks import ALONE
from essence.errors import MachineError
from essence.settings import LossResources
from essence.stages import train
from support.some_resources import some_objective
from support.stage_inputs import context, inputs, train_settings

RESOURCES = LossResources(form="chunked", chunk_rows=512, gradient_rows=4096, compiled=False, fallback=False)


def heads(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(300, hidden, generator=generator).to(dtype) / 4 for hidden in (32, 48))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_passes(dtype: torch.dtype, divergence: str) -> None:
    head, teacher_head = heads(dtype)
    report = parity(head, teacher_head, dtype, some_objective(divergence=divergence), RESOURCES)
    assert report.passed, report.describe()
    assert head.grad is None


def test_without_teacher_and_under_float32_masters() -> None:
    head, _ = heads(torch.float32)
    assert parity(head, None, torch.bfloat16, some_objective(kd_weight=0.0), RESOURCES).passed


RIGHT = chunked.block_gradient


def wrong(logits: torch.Tensor, *rest: Any) -> Any:
    sums = RIGHT(logits, *rest)
    logits.mul_(1.2)
    return sums


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "block_gradient", wrong)
    report = parity(*heads(torch.float32), torch.float32, some_objective(), RESOURCES)
    assert not report.passed
    assert report.head_gradient_difference == pytest.approx(0.2, rel=1e-3)
    assert "2.0e-01" in report.describe()


def test_a_wrong_form_stops_or_gives_way_to_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*heads(torch.float32), torch.float32, some_objective())
    assert settle(*arguments, RESOURCES, ALONE).resources == RESOURCES
    monkeypatch.setattr(chunked, "block_gradient", wrong)
    with pytest.raises(MachineError, match=r'chunked loss is not the plain one on cpu: .*2\.0e-01.*set form = "plain"'):
        settle(*arguments, RESOURCES, ALONE)
    settled = settle(*arguments, RESOURCES.model_copy(update={"fallback": True}), ALONE)
    assert settled.resources.form == settled.as_json()["form"] == "plain"
    assert len(settled.fell_back) == 1 and settled.parity is None


COMPILED = RESOURCES.model_copy(update={"compiled": True})


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_equals_plain() -> None:
    """In the paper's case, whose compiled form is spelt out in other operations, with chunks of two sizes."""
    head, teacher_head = heads(torch.bfloat16)
    settled = settle(head, teacher_head, torch.bfloat16, some_objective(), COMPILED, ALONE)
    assert settled.as_json()["compiled"] and settled.fell_back == [] and settled.parity and settled.parity.passed


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import config

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    arguments = (*heads(torch.float32), torch.float32, some_objective())
    # A monkeypatch of the nested setting would remove it afterwards, for the whole process.
    with config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):
        with pytest.raises(MachineError, match=r"cannot be compiled on this machine .*compiled = false or fallback"):
            settle(*arguments, COMPILED, ALONE)
        settled = settle(*arguments, COMPILED.model_copy(update={"fallback": True}), ALONE)
    assert settled.resources == RESOURCES.model_copy(update={"fallback": True})
    assert "cannot be compiled" in settled.fell_back[0] and settled.parity and settled.parity.passed
    torch._dynamo.reset()


def test_a_whole_training_in_bfloat16_passes_its_check(prepared: dict[str, Path], tmp_path: Path) -> None:
    """With heads as the models of this training have them: both bfloat16."""
    around = context(tmp_path, **inputs(prepared))
    outcome = train.run(train_settings(compute_dtype="bfloat16"), around)
    checked = outcome.executed.preflight.objective
    assert checked.form == "chunked" and checked.parity and checked.parity.passed and checked.fell_back == []
    assert outcome.executed.weights == "bfloat16"
