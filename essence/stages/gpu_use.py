"""How busy the GPUs of a stage are, for progress.json: what a person sees of them from another machine."""

import functools
import os
from typing import Any

GIB = 1024**3


def gpu_use() -> list[dict[str, float]]:
    """Share of the last moment that each visible GPU was busy, in percent, and its memory in use and in all, in GiB.

    Empty where no driver answers, as without a GPU or on a part of one (MIG), which NVML counts nothing for.
    """
    handles = _handles()
    if not handles:
        return []
    import pynvml

    try:
        return [_one(pynvml, handle) for handle in handles]
    except pynvml.NVMLError:
        return []


def _one(nvml: Any, handle: Any) -> dict[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "busy_percent": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_gib": round(memory.used / GIB, 1),
        "total_gib": round(memory.total / GIB, 1),
    }


@functools.cache
def _handles() -> tuple[Any, ...]:
    """NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, all of them where it is not set."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = map(str, range(pynvml.nvmlDeviceGetCount())) if named is None else filter(None, named.split(","))
        return tuple(
            pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        )
    except pynvml.NVMLError:
        return ()
