"""The local engine: each stage is a process of this machine.

It runs in the environment of its own (`.venv-train` and so on) where all three are of the locks of the flavour, and
otherwise in the one that runs this very Python.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import essence
from essence.engines import environments
from essence.engines.engine import DEVICE_ORDER, Engine, Exit, Launch, ended_by_signal, limit_words, memory_kills
from essence.engines.inherited_variables import inherited
from essence.engines.recipes import check_decoder, recipe
from essence.engines.secrets import token
from essence.errors import MachineError
from essence.evaluation.decoders.installed import vllm_version
from essence.evaluation.graders_apart import grader_lock_sha256, require_installed
from essence.plan.stage_plan import GRADER_LOCK, VLLM_LOCK, PlannedStage
from essence.record.facts import layer_lock_sha256, lock_sha256, torch_version
from essence.settings import EnvironmentName, GradeSettings, SamplingSettings

PACKAGE_ROOT = Path(essence.__file__).resolve().parent.parent


class LocalEngine(Engine):
    """Processes on this machine."""

    name = "local"
    contained = False

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self.apart = environments.are_there(flavour)
        """Whether each stage runs in an environment of its own."""

    def environment(self, name: EnvironmentName) -> dict[str, str]:
        """Of one environment for all stages the lock, and those of the layers on it; else as of its image."""
        if self.apart:
            identity = recipe(name, self.flavour).identity()
            return {part: value for part, value in identity.items() if part != "base"}
        vllm = layer_lock_sha256("vllm") if name == "eval" else None
        grader = grader_lock_sha256("math-verify-0.9") if name == "eval" else None
        layers = {VLLM_LOCK: vllm, GRADER_LOCK: grader}
        return {"lock_sha256": lock_sha256(), **{layer: lock for layer, lock in layers.items() if lock}}

    def image(self, name: EnvironmentName) -> dict[str, str | None]:
        """No image here."""
        del name
        return {"engine": self.name, "engine_version": None, "digest": None, "base_digest": None, "sif_sha256": None}

    def check(self, stages: list[PlannedStage]) -> None:
        """MachineError when this environment lacks what a stage runs on: torch, its build for GPUs, or vLLM."""
        if any(stage.resources.ulimits for stage in stages) and not shutil.which("prlimit"):
            raise MachineError("resources.ulimits needs the command prlimit, which is not here", "leave ulimits empty")
        if self.apart:
            check_decoder(stages, self.flavour)
            return
        if any(stage.runs_in != "download" for stage in stages):
            check_torch(gpus=any(stage.resources.gpus for stage in stages))
        for stage in stages:
            if isinstance(stage.settings, SamplingSettings) and stage.settings.decoder == "vllm":
                vllm_version()
            if isinstance(stage.settings, GradeSettings):
                require_installed(stage.settings.grader)

    def render(self, surroundings: Launch) -> str:
        """The command line with the variables that matter."""
        variables = [f"{name}={value}" for name, value in surroundings.variables.items()]
        return shlex.join([*variables, *self.command(surroundings)])

    def command(self, surroundings: Launch) -> list[str]:
        """The command line of a stage."""
        own = environments.environment_python(surroundings.environment)
        limits = limit_words(surroundings.resources.ulimits)
        return [*limits, str(own) if self.apart else sys.executable, *surroundings.arguments]

    def start(self, surroundings: Launch) -> "LocalStage":
        return LocalStage(surroundings, self.command(surroundings))


def check_torch(gpus: bool) -> None:
    """MachineError unless torch is installed, for GPUs in a build that knows them."""
    if not (version := torch_version()):
        raise MachineError("this environment has no torch", "make setup, or run in images: --engine docker")
    if gpus and "+cpu" in version:
        raise MachineError(
            f"GPUs are asked for, and this environment holds the CPU build of PyTorch ({version})",
            "install Docker with the NVIDIA Container Toolkit, or Apptainer, or without containers: make setup-gpu",
        )


def variables(surroundings: Launch) -> dict[str, str]:
    """The whole environment of a stage's process: the caller's without secrets, and what the kit says."""
    own = {"ESSENCE_PARENT": str(os.getpid()), "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONUTF8": "1"}
    gpus = {}
    if surroundings.gpus:
        gpus = {"CUDA_DEVICE_ORDER": DEVICE_ORDER, "CUDA_VISIBLE_DEVICES": ",".join(surroundings.gpus)}
    return {**inherited(), **surroundings.variables, **gpus, **own}


class LocalStage:
    """A running stage."""

    def __init__(self, surroundings: Launch, command: list[str]) -> None:
        self.memory_kills = memory_kills()
        self.secret = token(surroundings.folder.path) if surroundings.network else None
        told = self.secret.variables(inside=False) if self.secret else {}
        with surroundings.folder.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables(surroundings) | told,
                cwd=surroundings.folder.path,
                # Should this process be killed, the stage still holds its GPUs until it is gone.
                pass_fds=surroundings.held_open,
                # Ctrl-C reaches the host alone, which then asks each stage to stop.
                start_new_session=True,
            )

    def poll(self) -> Exit | None:
        code = self.process.poll()
        if code is not None and self.secret:
            self.secret.forget()
        if code is None or code >= 0:
            return None if code is None else Exit(code)
        return ended_by_signal(-code, self.memory_kills)

    def stop(self) -> None:
        ask_to_stop(self.process)

    def kill(self) -> None:
        kill_group(self.process)
        self.poll()


def ask_to_stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM; one that has ended meanwhile needs none."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for a process and all that it started in its session; returns when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
