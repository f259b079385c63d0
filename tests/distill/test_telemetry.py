"""Event files without duplicate steps, trackers by their real packages where they are installed, device facts."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tensorboard", reason="TensorBoard is not installed")

from essence.distill import devices  # noqa: E402
from essence.distill.trackers import open_trackers  # noqa: E402

CPU = torch.device("cpu")


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_events_after_a_resumed_step_are_taken_back(tmp_path: Path) -> None:
    for first, last in ((1, 5), (3, 6)):  # the second attempt goes on after step 2
        (board,) = open_trackers(tmp_path, first - 1, "run", {})
        for step in range(first, last + 1):
            board.write(step, {"train/loss": first * 10.0 + step})
        board.close()
    found = scalars(tmp_path / "tensorboard", "train/loss")
    assert found == [(1, 11.0), (2, 12.0), (3, 33.0), (4, 34.0), (5, 35.0), (6, 36.0)]


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = [name for name in ("wandb", "mlflow") if not _importable(name)]
    variables = {"WANDB_PROJECT": "x", "MLFLOW_TRACKING_URI": str(tmp_path / "mlruns")}
    wanted = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_TRACKING_URI"}
    with caplog.at_level(logging.WARNING):
        trackers = open_trackers(tmp_path, 0, "run", {wanted[name]: variables[wanted[name]] for name in missing})
    assert len(trackers) == 1
    assert [record.getMessage().split()[0] for record in caplog.records] == [wanted[name] for name in missing]
    trackers[0].close()


TRACKED = """
import os, sys
from pathlib import Path
from essence.distill.trackers import open_trackers
for first in (1, 3):
    trackers = open_trackers(Path(sys.argv[1]), first - 1, "train-1234", os.environ)
    assert len(trackers) == 2, trackers
    for tracker in trackers:
        for step in (first, first + 1):
            tracker.write(step, {"train/loss": 1.0 / step})
        tracker.close()
"""


@pytest.mark.parametrize(
    ("package", "variable", "value", "left"),
    [
        ("wandb", "WANDB_PROJECT", "essence", "wandb/wandb/offline-run-*/*.wandb"),
        ("mlflow", "MLFLOW_TRACKING_URI", "{folder}/mlruns", "mlruns/*/*/metrics/train/loss"),
    ],
)
def test_the_real_packages(tmp_path: Path, package: str, variable: str, value: str, left: str) -> None:
    if not _importable(package):
        pytest.skip(f"{package} is not installed")
    environment = {"PATH": "", "HOME": str(tmp_path), variable: value.format(folder=tmp_path)}
    environment |= {"MLFLOW_ALLOW_FILE_STORE": "true", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-c", TRACKED, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob(left)), [str(path) for path in tmp_path.rglob("*")]


def _importable(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


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
