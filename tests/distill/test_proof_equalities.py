"""What a proof finds equal: attention of packed rows, a step and the same step, kept and recomputed activations."""

from pathlib import Path
from typing import Any

import pytest

from support.proof_settings import asked
from support.stage_inputs import context

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.distill import proof_equalities  # noqa: E402
from essence.distill.attention import row_attention  # noqa: E402
from essence.distill.proof_checks import Finding  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_attention_is_that_of_each_row(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that lets a row see the row before it is caught."""
    training = asked(tmp_path)[0].model_copy(update={"compute_dtype": dtype})
    assert proof_equalities.attention_finding(training, CPU).passed

    def one_row(module: Any, query: Any, key: Any, value: Any, mask: Any, row_starts: Any, longest: int) -> Any:
        whole = row_starts[[0, -1]]
        return row_attention(module, query, key, value, mask, whole, int(whole[-1]) + 0 * longest)

    monkeypatch.setattr(proof_equalities, "row_attention", one_row)
    found = proof_equalities.attention_finding(training, CPU)
    assert not found.passed and "packing = false" in found.sentence


def test_which_kernel_attends_is_told_and_one_that_is_not_flash_fails() -> None:
    right = Finding("attention", True, "they differ by 1e-3")
    names = [
        "void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>",
        "void at::native::vectorized_elementwise_kernel",
    ]
    assert proof_equalities._with_kernel(right, names) == right._replace(
        sentence=f"{right.sentence}, by {names[0][:60]}"
    )
    slow = proof_equalities._with_kernel(right, names[1:])
    assert not slow.passed and "no flash kernel ran (void at::native" in slow.sentence
    silent = proof_equalities._with_kernel(right, [])
    assert silent.passed and "does not tell which kernels ran" in silent.sentence


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_attends_packed_rows_with_a_flash_kernel(tmp_path: Path) -> None:
    """At heads of 128, as Qwen3's; and the same steps are the same within the bound of a GPU."""
    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    sizes = training.student_sizes.model_copy(update={"heads": 32, "kv_heads": 8, "head_dim": 128})
    wide = training.model_copy(update={"compute_dtype": "bfloat16", "student_sizes": sizes})
    found = proof_equalities.attention_finding(wide, torch.device("cuda"))
    assert found.passed and "flash" in found.sentence.lower()
    assert all(one.passed for one in proof_equalities.repeat_findings(wide, resources, torch.device("cuda")))


def test_a_step_is_the_same_again_and_with_recomputed_activations(tmp_path: Path) -> None:
    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    found = proof_equalities.repeat_findings(training, resources, CPU)
    assert [one.name for one in found] == ["repeat", "recomputation"]
    assert all(one.passed and "differ by 0.0e+00 in losses" in one.sentence for one in found)


def test_a_step_that_is_another_each_time_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose result depends on what ran before it, by a millionth."""
    from essence.distill import module
    from essence.distill.chunked import ChunkedObjective

    training, resources, calls = asked(tmp_path)[0], context(tmp_path / "x").resources, iter(range(1000))

    class Drifting:
        @staticmethod
        def apply(*given: Any) -> Any:
            loss, ce, kd = ChunkedObjective.apply(*given)  # type: ignore[no-untyped-call]
            return loss * (1.0 + 1e-6 * next(calls)), ce, kd

    monkeypatch.setattr(module, "ChunkedObjective", Drifting)
    again, recomputed = proof_equalities.repeat_findings(training, resources, CPU)
    assert not again.passed and not recomputed.passed and "report the versions" in again.sentence
