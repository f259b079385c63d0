"""Masters and moments in main memory: the same numbers as on the device, in buckets, and gone when a training ends."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="transformers is not installed")
from essence.distill import float32_masters
from essence.distill.backends import make_backend
from essence.distill.main_memory import MainMemoryBackend
from essence.distill.module import Distiller
from essence.distill.ranks import ALONE, Ranks
from essence.distill.schedule import CyclePoint
from essence.distill.storage import TrainResult
from essence.progress import Stopped, StopRequest
from support.small_training import RESOURCES, ActAfter, metrics_without_time, model, run, settings
from support.some_resources import some_optimizer

MOVED: dict[str, Any] = {"compute_dtype": "bfloat16", "optimizer_placement": "main_memory"}
PLACED = {**MOVED, "optimizer_placement": "device"}
CPU = torch.device("cpu")
MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def several_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some buckets hold several weights, and one, the embedding, is larger than a bucket."""
    monkeypatch.setattr(float32_masters, "BUCKET_ELEMENTS", 350)


def backend(ranks: Ranks = ALONE, **changes: Any) -> MainMemoryBackend:
    chosen = settings(**MOVED, **changes)
    distiller = Distiller(model(0), chosen.objective, RESOURCES.loss, torch.bfloat16, autocast=False)
    made = make_backend(distiller, chosen, ranks, CPU, None)
    assert isinstance(made, MainMemoryBackend)
    return made


def files_mapped() -> list[str]:
    """What this process has mapped, where the system lists that."""
    return MAPS.read_text().splitlines() if MAPS.is_file() else []


def same(one: TrainResult, other: TrainResult) -> None:
    assert metrics_without_time(one.metrics) == metrics_without_time(other.metrics)
    weights, expected = load_file(one.last_weights), load_file(other.last_weights)
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.parametrize("clip", [1.0, 1e-3])
def test_the_numbers_are_those_of_masters_on_the_device(tmp_path: Path, clip: float) -> None:
    """Bit for bit where the device is a processor, too; also where every gradient is clipped."""
    changes: dict[str, Any] = {"optimizer": {**some_optimizer(), "gradient_clip_norm": clip}}
    moved = run(tmp_path / "moved", model(0), model(1, hidden=24), **MOVED, **changes)
    placed = run(tmp_path / "placed", model(0), model(1, hidden=24), **PLACED, **changes)
    same(moved, placed)


def test_stopped_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    stop, work = StopRequest(), tmp_path / "work"
    asked = ActAfter(tmp_path / "progress.json", 3, lambda: stop.ask("a test"))
    with pytest.raises(Stopped):
        run(work, model(0), model(1, hidden=24), stop, asked, **MOVED)
    mapped: list[str] = []
    look = ActAfter(tmp_path / "progress.json", 5, lambda: mapped.extend(files_mapped()))
    resumed = run(work, model(5), model(1, hidden=24), progress=look, **MOVED)
    assert [line for line in mapped if str(work) in line] == [], "a checkpoint can be removed on any disk"
    same(resumed, run(tmp_path / "whole", model(0), model(1, hidden=24), **MOVED))


def test_masters_lie_apart_from_the_weights_in_buckets() -> None:
    """Each weight is a rounding of its master, in memory of its own; each has one place in one bucket, in order."""
    made = backend()
    weights = [weight for part in made.parts for weight in part.weights]
    assert weights == [*made.student.parameters()] == [*made.masters] and len(made.parts) > 5
    assert any(len(part.weights) > 1 for part in made.parts)
    assert not all(torch.equal(weight.float(), master) for weight, master in made.masters.items())
    for weight, master in made.masters.items():
        assert weight.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(weight, master.bfloat16())
        assert weight.untyped_storage().data_ptr() != master.untyped_storage().data_ptr()


def test_a_rank_that_owns_no_weight_updates_none() -> None:
    """Where ranks outnumber weights; what others would send it is left out."""
    made = backend(Ranks(rank=1), parallel="zero2", processes=2)
    before = [weight.clone() for weight in made.student.parameters()]
    assert made.masters == {} and made.step(CyclePoint(1e-3, 0.9)) == 0.0
    assert all(torch.equal(weight, was) for weight, was in zip(made.student.parameters(), before, strict=True))


def test_main_memory_is_free_again_when_a_training_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved then takes its place (essence/sizes/host.py); the student, whose weights are watched, lives on."""
    made: list[weakref.ref[MainMemoryBackend]] = []
    initialise = MainMemoryBackend.__init__

    def remembered(self: MainMemoryBackend, *given: Any) -> None:
        initialise(self, *given)
        made.append(weakref.ref(self))

    student = model(0)
    monkeypatch.setattr(MainMemoryBackend, "__init__", remembered)
    gc.disable()
    try:
        run(tmp_path / "work", student, **MOVED)
        assert [one() for one in made] == [None] and next(student.parameters()).dtype == torch.bfloat16
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"parallel": "zero3", "processes": 2}, "not under parallel = 'zero3': choose zero2"),
        ({"lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj"]}}, "adapters .lora.rank = 4. are float32 and few"),
        ({"compute_dtype": "float32"}, "compute_dtype = 'float32' has no masters"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        settings(**{**MOVED, **changes})
