"""The check of the fast objective before training: passes where it is right, and tells the numbers where it is not."""

from typing import Any

import pytest
import torch
from some_resources import some_objective

from essence.distill import chunked
from essence.distill.parity import parity
from essence.settings import LossResources

RESOURCES = LossResources(form="chunked", chunk_rows=512, gradient_rows=4096, compiled=False)


def heads(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(300, hidden, generator=generator).to(dtype) / 4 for hidden in (32, 48))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_passes(dtype: torch.dtype, divergence: str) -> None:
    head, teacher_head = heads(dtype)
    report = parity(head, teacher_head, dtype, some_objective(divergence=divergence), RESOURCES)
    assert report.passed, report.describe()
    assert head.grad is None


def test_without_teacher_and_under_float32_masters() -> None:
    head, _ = heads(torch.float32)
    assert parity(head, None, torch.bfloat16, some_objective(kd_weight=0.0), RESOURCES).passed


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunked.block_gradient

    def wrong(logits: torch.Tensor, *rest: Any) -> Any:
        sums = right(logits, *rest)
        logits.mul_(1.2)
        return sums

    monkeypatch.setattr(chunked, "block_gradient", wrong)
    report = parity(*heads(torch.float32), torch.float32, some_objective(), RESOURCES)
    assert not report.passed
    assert report.head_gradient_difference == pytest.approx(0.2, rel=1e-3)
    assert "2.0e-01" in report.describe()
