"""The engine of an experiment when none was given: the first available on this machine, with the reason."""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from essence.engines import environments
from essence.engines.apptainer import ApptainerEngine
from essence.engines.local import LocalEngine
from essence.engines.recipes import recipe
from essence.engines.sif_files import sif_file
from essence.engines.slurm.slurm_engine import SlurmEngine
from essence.errors import ExperimentError, nearest

ENGINE_VARIABLE, SITE_VARIABLE = "ESSENCE_ENGINE", "ESSENCE_SITE"
DOCKER = "docker"
SOCKET = Path("/var/run/docker.sock")
ANSWER_S = 5
"""How long to wait for a Docker engine that may be on another machine."""


@dataclass(frozen=True)
class Choice:
    """An engine, and why it is that one; the reason is empty where it was typed."""

    name: str
    reason: str = ""


def choose(typed: str | None, gpus: bool, known: tuple[str, ...], fetches: bool = False) -> Choice:
    """The typed engine, this machine's default, or what an experiment with or without GPUs can run under here.

    fetches: downloads alone, which no queue takes and which need no SIF.
    """
    if typed is not None:
        return Choice(typed)
    if name := os.environ.get(ENGINE_VARIABLE):
        if name not in known:
            close = nearest(name, known)
            raise ExperimentError(f"{ENGINE_VARIABLE}={name}: unknown engine{close} (known: {', '.join(known)})")
        if not (fetches and name == SlurmEngine.name):
            return Choice(name, f"{ENGINE_VARIABLE} names it")
    if not gpus:
        return Choice(LocalEngine.name, "")
    if version := docker_version():
        return Choice(DOCKER, f"Docker {version} answers here")
    if found := shutil.which("apptainer") or shutil.which("singularity"):
        if fetches and find_spec("huggingface_hub") and not sif_file(recipe("download", "cpu")).is_file():
            return Choice(LocalEngine.name, "no Docker engine answers here, and no SIF of downloads is here")
        return Choice(ApptainerEngine.name, f"no Docker engine answers here, and {found} is installed")
    if environments.are_there("cuda"):
        return Choice(LocalEngine.name, "neither Docker nor Apptainer is here, and the environments for GPUs are")
    return Choice(LocalEngine.name, f"neither Docker nor Apptainer is here{_queueing()}")


def site_of(typed: str | None, engine: str) -> str | None:
    """The site that was typed, or for the engine that has sites this machine's default."""
    return typed or (os.environ.get(SITE_VARIABLE) or None if engine == SlurmEngine.name else None)


def queueing(command: str) -> str:
    """How to queue, on a login node; empty on any other machine. `command` is what was typed."""
    if not shutil.which("sbatch"):
        return ""
    site = os.environ.get(SITE_VARIABLE) or "FILE.toml"
    return f"queue it from this login node: {command} --engine slurm --site {site}"


def _queueing() -> str:
    return "; this is a login node: --engine slurm --site FILE.toml queues jobs" if shutil.which("sbatch") else ""


def docker_version() -> str | None:
    """The version of the Docker engine that answers; None without one."""
    if not (SOCKET.exists() or os.environ.get("DOCKER_HOST") or shutil.which("docker")):
        return None
    # Imported here: a machine without Docker need not wait for its client.
    from essence.engines.docker import answering_version

    return answering_version(ANSWER_S)
