"""How stages are started: the same spec, whatever surrounds it."""

from collections.abc import Callable

from essence.engines.apptainer import ApptainerEngine
from essence.engines.engine import Flavour, StartingEngine
from essence.engines.local import LocalEngine


def _docker(flavour: Flavour) -> StartingEngine:
    # Imported here: what runs without containers need not wait for it.
    from essence.engines.docker import DockerEngine

    return DockerEngine(flavour)


STARTING: dict[str, Callable[[Flavour], StartingEngine]] = {
    "local": lambda _flavour: LocalEngine(),
    "docker": _docker,
    "apptainer": ApptainerEngine,
}
"""Engine name -> how to make it for a flavour of the images."""
SLURM = "slurm"
"""Queues jobs instead of starting stages."""
ENGINES = (*STARTING, SLURM)
FLAVOURS = ("cuda", "cpu", "paper")
