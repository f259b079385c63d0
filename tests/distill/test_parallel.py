"""Several processes train as one does: the same curve, the same weights, and after an interruption the same bits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.project import PROJECT

pytest.importorskip("transformers", reason="transformers is not installed")
from essence.distill.adapters import add_adapters
from essence.settings import LoraSettings
from essence.sizes.step_rows import deal, steps_of_epoch
from support.rank_program import BFLOAT16, LAYERS, LORA, RESUMED, WAYS
from support.small_training import AS_RELEASED, FIRST_ROWS, model, run

pytestmark = pytest.mark.slow
LOSS_TOLERANCE = 2e-6
"""Of losses of about 3; the same float32 sums in another order gave 3e-7."""
WEIGHT_TOLERANCE = 5e-6
BFLOAT16_TOLERANCE = 5e-3
"""Between one way of training in bfloat16 and float32."""


def adapted(seed: int) -> Any:
    """The student with adapters of its own seed."""
    student = model(0)
    add_adapters(student, LoraSettings.model_validate(LORA), seed)
    return student


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all the ways, trained by two ranks, and `single`."""
    folder = tmp_path_factory.mktemp("parallel")
    run(folder / "single", model(0), model(1, hidden=24), **AS_RELEASED)
    run(folder / "single-lora", adapted(3), model(1, hidden=24), lora=LORA, **AS_RELEASED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(PROJECT / "tests" / "support" / "rank_program.py"), str(folder)]
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run([*launcher, *program], env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def curve(folder: Path) -> dict[str, list[float]]:
    """Losses, gradient norms and validations of a training."""
    records: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    checks = [record for record in records if record["kind"] == "validation"]
    return {
        **{name: [step[name] for step in steps] for name in ("loss", "ce", "kd", "gradient_norm")},
        "validation": [record["ce"] for record in checks],
        "parts": [loss for record in checks for loss in record["parts"]],
        "tokens": [step["tokens"] for step in steps],
    }


@pytest.mark.parametrize("way", WAYS)
def test_curve_and_weights_are_those_of_one_process(trained: Path, way: str) -> None:
    lower = "bfloat16" in way
    tolerance = BFLOAT16_TOLERANCE if lower else LOSS_TOLERANCE
    single = trained / ("single-lora" if "lora" in way else "single")
    alone, together = curve(single), curve(trained / way)
    assert len(alone["loss"]) == 6 and len(alone["validation"]) == 4
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, abs=tolerance), name
    weights, expected = load_file(trained / way / "last.safetensors"), load_file(single / "last.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0.0, atol=1e-2 if lower else WEIGHT_TOLERANCE)


@pytest.mark.parametrize(
    "way", ["zero2-bfloat16", "zero3-bfloat16", "zero2-bfloat16-exact", "zero2-bfloat16-main-memory"]
)
def test_sharded_bfloat16_is_replicated_bfloat16(trained: Path, way: str) -> None:
    """The same rounded weights and float32 masters in every backend; gradients cross in another order."""
    sharded, replicated = curve(trained / way), curve(trained / "ddp-bfloat16")
    for name, values in replicated.items():
        assert sharded[name] == pytest.approx(values, abs=1e-3, rel=1e-3), name


def test_masters_in_main_memory_are_those_of_the_device(trained: Path) -> None:
    """Each rank has a share of them, and all are what they are where every rank has all: gradients cross alike."""
    moved, placed = trained / "ddp-bfloat16-main-memory", trained / "ddp-bfloat16"
    assert curve(moved) == curve(placed)
    weights, expected = load_file(moved / "last.safetensors"), load_file(placed / "last.safetensors")
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


def test_masters_hold_more_than_the_weights_that_are_computed_with(trained: Path) -> None:
    for way in ("ddp-bfloat16", "zero2-bfloat16", "zero3-bfloat16"):
        weights = load_file(trained / way / "last.safetensors")
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        rounded = {name for name, weight in weights.items() if torch.equal(weight.bfloat16().float(), weight)}
        assert len(rounded) < len(weights) / 4, way


@pytest.mark.parametrize("way", [way for way in WAYS if "compiled" in way])
def test_layers_are_compiled_where_they_lie_whole(trained: Path, way: str) -> None:
    told = json.loads((trained / way / LAYERS).read_text())
    whole = "zero3" not in way
    assert told["student"] is whole and told["teacher"] is whole and all(one["passed"] for one in told["parity"])
    why = [
        "the student's layers cannot be compiled under parallel = 'zero3'",
        "the teacher's layers cannot be compiled",
    ]
    assert len(told["fell_back"]) == len([] if whole else why)
    assert all(said.startswith(start) for said, start in zip(told["fell_back"], why, strict=False))


@pytest.mark.parametrize("way", RESUMED)
def test_stopped_by_one_rank_and_resumed_gives_the_same_bits(trained: Path, way: str) -> None:
    undisturbed, resumed = trained / way, trained / f"{way}-resumed"
    assert curve(undisturbed) == curve(resumed)
    names = sorted(path.name for path in undisturbed.glob("*.safetensors"))
    assert names == sorted(path.name for path in resumed.glob("*.safetensors")) and "last.safetensors" in names
    for name in names:
        weights, expected = load_file(resumed / name), load_file(undisturbed / name)
        assert [key for key in expected if not torch.equal(weights[key], expected[key])] == []


@pytest.mark.parametrize("way", RESUMED)
def test_a_checkpoint_of_two_ranks_goes_on_in_one_process(trained: Path, way: str, tmp_path: Path) -> None:
    """Each rank wrote its share of whole tensors, so the number of ranks and the backend may change."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "checkpoints").symlink_to(trained / f"{way}-resumed" / "checkpoints")
    written = sorted(path.name for path in (work / "checkpoints" / "step-00000003").iterdir())
    assert [name for name in written if name.startswith("tensors")] == [
        "tensors-00000-of-00002.safetensors",
        "tensors-00001-of-00002.safetensors",
    ]
    lora = "lora" in way
    changes = {**AS_RELEASED, **({"lora": LORA} if lora else {}), **(BFLOAT16 if "bfloat16" in way else {})}
    result = run(work, adapted(9) if lora else model(9), model(1, hidden=24), **changes)
    expected = load_file(trained / ("single-lora" if lora else "single") / "last.safetensors")
    for name, weight in load_file(result.last_weights).items():
        tolerance = 1e-2 if "bfloat16" in way else WEIGHT_TOLERANCE
        torch.testing.assert_close(weight, expected[name], rtol=0.0, atol=tolerance)


def test_diverged_training_names_the_rows_on_every_rank(trained: Path) -> None:
    for rank in (0, 1):
        told = (trained / "diverged" / f"diverged-{rank}.txt").read_text()
        assert re.search(f"step 1 of 6.*{FIRST_ROWS}", told)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_rows_are_dealt_once_and_in_equally_many_passes(processes: int, packed: bool) -> None:
    from support.some_resources import some_resources

    lengths = [40, 3, 17, 17, 90, 5]
    resources = some_resources(micro_batch_rows=2, micro_batch_tokens=64)
    dealt = deal(lengths, processes, packed, 16, resources)
    assert len(dealt) == processes and len({len(passes) for passes in dealt}) == 1
    assert sorted(index for passes in dealt for part in passes for index in part) == list(range(6))
    tokens = [sum(lengths[index] for part in passes for index in part) for passes in dealt]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_steps_hold_rows_or_tokens() -> None:
    from support.small_training import settings

    optimizer = settings().optimizer
    assert steps_of_epoch(range(10), [5] * 10, optimizer) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    left_out = [3, None, 0, 1, None, None, None, None, 2]
    assert steps_of_epoch(left_out, [5] * 4, optimizer) == [[3, 0, 1], [2]]
    by_tokens = optimizer.model_copy(update={"batch_tokens": 20})
    assert steps_of_epoch(range(6), [5, 9, 9, 30, 2, 2], by_tokens) == [[0, 1], [2], [3], [4, 5]]
    assert steps_of_epoch([5, None, 3, 0, 1], [5, 9, 9, 30, 2, 2], by_tokens) == [[5], [3], [0, 1]]
