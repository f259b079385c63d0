"""Event files without duplicate steps, device facts."""

import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tensorboard", reason="TensorBoard is not installed")

from essence.distill import devices  # noqa: E402
from essence.distill.metrics import MetricsLog  # noqa: E402

CPU = torch.device("cpu")


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_events_after_a_resumed_step_are_taken_back(tmp_path: Path) -> None:
    for first, last in ((1, 5), (3, 6)):  # the second attempt goes on after step 2
        time.sleep(1.0 - time.time() % 1.0)  # event files are read in the order of their names, by seconds
        log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
        log.cut_after(first - 1)
        with log:
            for step in range(first, last + 1):
                log.write(kind="step", step=step, loss=first * 10.0 + step)
    found = scalars(tmp_path / "tensorboard", "train/loss")
    assert found == [(1, 11.0), (2, 12.0), (3, 33.0), (4, 34.0), (5, 35.0), (6, 36.0)]


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 125.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GB200", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks_are_found_by_name(name: str, tera: float | None) -> None:
    peak = devices.peak_of(name)
    assert (peak and peak.flops / 1e12) == tera
    assert peak is None or peak.source


def test_a_cpu_has_memory_and_neither_peak_nor_energy() -> None:
    assert devices.peak_of_device(CPU) is None
    assert devices.model_flops_utilization(1e12, 1.0, CPU, 1) is None
    assert devices.memory_bytes(CPU) > devices.peak_memory_bytes(CPU) > 1 << 24
    assert devices.EnergyMeter(CPU).since_last() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_tells_its_energy() -> None:
    device = torch.device("cuda")
    meter = devices.EnergyMeter(device)
    matrix = torch.randn(4096, 4096, device=device)
    for _ in range(100):
        matrix = matrix @ matrix / 64
    torch.cuda.synchronize()
    used = meter.since_last()
    assert used is None or used >= 0.0
    assert 0 < devices.peak_memory_bytes(device) <= devices.memory_bytes(device)
