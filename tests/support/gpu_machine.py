"""The real commands on a machine that seems to have eight GPUs: `python -m support.gpu_machine SEEN reproduce ...`.

What is planted, and nothing else: a program of the name nvidia-smi; PyTorch's build for the CPU and images without CUDA
pass for the others; the machine has cores for all of them; and stages are started as `gpu_stage.py`, which notes in the
folder SEEN what they were given. Plan, run, engine, stages, records and report are the kit's.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from invoke.main import program

from essence.engines import capacity, engine, local, readiness, runner
from essence.engines.engine import Launch, Mount
from essence.engines.requirement import Requirement
from support.project import PROJECT

STAGE = Path(__file__).with_name("gpu_stage.py")
GPUS, CORES = 8, 64.0


def install_gpus(folder: Path, uuids: list[str]) -> None:
    """A program nvidia-smi, in a new folder, that tells of these GPUs."""
    rows = [f"{number}, NVIDIA H100, {uuid}, 81559, 580.95.05" for number, uuid in enumerate(uuids)]
    folder.mkdir()
    (folder / "nvidia-smi").write_text("\n".join(["#!/bin/sh", "cat <<END", *rows, "END", ""]), encoding="utf-8")
    (folder / "nvidia-smi").chmod(0o755)


def uuids_of(seen: Path) -> list[str]:
    """Of the machine that is known by this folder."""
    return [f"GPU-{seen}-{number}" for number in range(GPUS)]


def on_eight_gpus(seen: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """A command line on such a machine, made here, and its environment."""
    programs = seen.with_name(f"{seen.name}-bin")
    seen.mkdir()
    install_gpus(programs, uuids_of(seen))
    told = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")]),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return [sys.executable, "-m", "support.gpu_machine", str(seen), *words], {**inherited, **told}


def plant(seen: Path) -> None:
    """Make this process's machine one of eight GPUs."""
    real_torch, real_surroundings = local.check_torch, engine.surroundings

    class Planted(Launch):
        @property
        def arguments(self) -> list[str]:
            return ["-c", STAGE.read_text(encoding="utf-8"), str(seen), *super().arguments[2:]]

    def surroundings(*given: Any) -> Launch:
        around = real_surroundings(*given)
        around = replace(around, mounts=(*around.mounts, Mount(seen, seen, read_only=False)))
        return Planted(**vars(around))

    vars(local)["check_torch"] = lambda gpus: real_torch(gpus=False)
    vars(readiness)["_driver"] = lambda *_: Requirement("driver", "a stand-in")
    vars(runner)["surroundings"] = surroundings
    vars(capacity)["usable_cores"] = lambda: CORES


if __name__ == "__main__":
    plant(Path(sys.argv.pop(1)))
    # As the script of that name: what the tasks prepare for a program, they prepare for this one.
    sys.argv[0] = str(Path(sys.executable).with_name("invoke"))
    sys.exit(program.run())
