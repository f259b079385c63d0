"""What a device and a disk do a second, timed: products, copies, kernel starts, files that are flushed."""

import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from essence.distill.adamw import adamw
from essence.files import sync
from essence.settings import OptimizerSettings

REPEATS = 5
"""Of each measurement; the median counts. One more comes first and is not timed."""
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 25}
UPDATED_PARAMETERS = {"cuda": 1 << 26, "cpu": 1 << 20}
LAUNCHES = 200
PIECE_BYTES = 1 << 20


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median wall time of some work that is finished, once it ran before."""
    work()
    settle(device)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        settle(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def settle(device: torch.device) -> None:
    """Return when all that was started on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def give_back(device: torch.device) -> None:
    """Let other processes have what this one holds of a device and no longer needs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def product_flops_per_s(rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of [rows, inner] times [inner, columns], a multiply-add being two."""
    # Of random numbers: those that are all alike take less power, and a GPU clocks higher.
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    return 2.0 * rows * inner * columns / seconds_of(lambda: left @ right, device)


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes that a copy on the device reads and writes a second."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / seconds_of(lambda: target.copy_(source), device)


def host_bytes_per_s(device: torch.device) -> float | None:
    """Bytes a second from a GPU to main memory that it copies to by itself; None on a CPU."""
    if device.type == "cpu":
        return None
    source: Tensor = torch.ones(COPY_BYTES["cuda"], dtype=torch.uint8, device=device)
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return source.numel() / seconds_of(lambda: target.copy_(source, non_blocking=True), device)


def main_memory_parameter_s(settings: OptimizerSettings, device: torch.device) -> float:
    """Seconds that a parameter takes to be updated in main memory, on all threads, and rounded; beside which device."""
    master = nn.Parameter(torch.zeros(UPDATED_PARAMETERS[device.type]))
    master.grad = torch.ones_like(master)
    rounded, optimizer = torch.empty_like(master, dtype=torch.bfloat16), adamw([master], settings)

    def update() -> None:
        optimizer.step()
        rounded.copy_(master.detach())

    return seconds_of(update, torch.device("cpu")) / master.numel()


def launch_s(device: torch.device) -> float:
    """Seconds that a kernel of no work takes, one after the other."""
    one = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(LAUNCHES):
            one.add_(1.0)

    return seconds_of(many, device) / LAUNCHES


def write_s(file: Path, size: int) -> float:
    """Seconds until so many bytes are on the disk; the file stays."""
    piece = os.urandom(PIECE_BYTES)
    started = time.perf_counter()
    with file.open("wb") as written:
        for _ in range(size // PIECE_BYTES):
            written.write(piece)
        sync(written)
    return time.perf_counter() - started


def read_s(file: Path) -> float:
    """Seconds to read a file that lies on the disk; what the system keeps of it in memory it is asked to let go."""
    with file.open("rb") as read:
        os.posix_fadvise(read.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while read.read(PIECE_BYTES):
            pass
    return time.perf_counter() - started
