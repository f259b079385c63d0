"""What a device can do, what it holds, what it has used: peak FLOP/s, memory, energy. None where nothing reports it."""

import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from essence.errors import MachineError
from essence.memory_limit import memory_limit_bytes
from essence.settings import Record, Resources

TABLE = Path(__file__).with_name("devices.json")
COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MILLIJOULES = 1e-3
MFU_FORMULA = (
    "FLOPs of all training steps (a row: 3 * forward of the student, 1 * forward of the teacher; no recomputation, no "
    "padding) / seconds in training steps / (dense bfloat16 peak of a device * devices)"
)


class Peak(NamedTuple):
    """Dense bfloat16 FLOP/s of a device, and who says so."""

    flops: float
    source: str


class Device(Record):
    """An entry of `devices.json`."""

    words: list[str]
    """All of them are in the device's name."""
    bfloat16_flops: float
    source: str


class DeviceTable(Record):
    """`devices.json`; of several entries that fit, the first is meant."""

    note: str
    devices: list[Device]


@cache
def _table() -> list[Device]:
    return DeviceTable.model_validate_json(TABLE.read_text(encoding="utf-8")).devices


def peak_of(name: str) -> Peak | None:
    """The entry of `devices.json` for a device's name (`NVIDIA H100 80GB HBM3`); None where there is none."""
    parts = name.replace("-", " ").replace("_", " ").lower().split()
    for entry in _table():
        if all(any(part.startswith(word.lower()) for part in parts) for word in entry.words):
            return Peak(entry.bfloat16_flops, entry.source)
    return None


def peak_of_device(device: torch.device) -> Peak | None:
    """The same for a device of PyTorch; None on a CPU, whose peak is in no table."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def model_flops_utilization(model_flops: float, seconds: float, device: torch.device, devices: int) -> float | None:
    """MFU: FLOPs that the method needs (no recomputation) a second, as a share of the devices' peak."""
    peak = peak_of_device(device)
    return model_flops / seconds / (peak.flops * devices) if peak and seconds > 0.0 else None


def prepare_device(resources: Resources, index: int) -> torch.device:
    """A GPU of this machine where GPUs are asked for, else the CPU with the stated threads; sets PyTorch's options.

    Raises:
        MachineError: there is no such GPU.
    """
    torch.set_num_threads(resources.threads)
    if resources.gpus == 0:
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if seen <= index:
        raise MachineError(
            f"resources.gpus = {resources.gpus}, but PyTorch {torch.__version__} sees {seen} GPUs here: give the stage "
            "a GPU, or set gpus = 0"
        )
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def memory_bytes(device: torch.device) -> int:
    """Memory of a device; of a CPU the machine's, or what this process may take where that is less."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = int(psutil.virtual_memory().total)
    limit = memory_limit_bytes()
    return total if limit is None else min(total, limit)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: allocated by PyTorch on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux


class EnergyMeter:
    """Joules that a process's own GPU has used since the last look, as its driver counts them.

    Its own alone: every process of a training sees all GPUs of its machine, and what they report is summed.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle = _handle(device) if device.type == "cuda" else None
        self._last = self._joules()

    def since_last(self) -> float | None:
        """None where there is no GPU or its driver does not count."""
        now = self._joules()
        if now is None or self._last is None:
            return None
        used, self._last = now - self._last, now
        return used

    def _joules(self) -> float | None:
        if self._handle is None:
            return None
        import pynvml

        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * MILLIJOULES
        except pynvml.NVMLError:
            return None


def _handle(device: torch.device) -> Any:
    """NVML's handle of a device of PyTorch, matched by UUID; None without NVML."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None
