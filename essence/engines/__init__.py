"""How stages are started: the same spec, whatever surrounds it."""

from collections.abc import Callable, Mapping

from essence.engines.apptainer import ApptainerEngine
from essence.engines.engine import Engine, Flavour
from essence.engines.local import LocalEngine
from essence.engines.slurm.slurm_engine import DEFAULT_SITE, SlurmEngine
from essence.errors import ExperimentError


def _docker(flavour: Flavour) -> Engine:
    # Imported here: what runs without containers need not wait for it.
    from essence.engines.docker import DockerEngine

    return DockerEngine(flavour)


_ON_THIS_MACHINE: dict[str, Callable[[Flavour], Engine]] = {
    "local": LocalEngine,
    "docker": _docker,
    "apptainer": ApptainerEngine,
}
ENGINES = (*_ON_THIS_MACHINE, SlurmEngine.name)
"""Choices of `--engine`."""
FLAVOURS = ("cuda", "cpu")


def make_engine(
    name: str, flavour: Flavour, site: str | None = None, of_the_site: Mapping[str, str] | None = None
) -> Engine:
    """The engine of that name for a flavour of the images; ExperimentError for a site that it does not have.

    of_the_site: key of the site file -> the value that was typed for it.
    """
    if name == SlurmEngine.name:
        return SlurmEngine(flavour, site or DEFAULT_SITE, of_the_site or {})
    for key, value in {**({"site": site} if site else {}), **(of_the_site or {})}.items():
        option = f"--{key.replace('_', '-')} {value}"
        raise ExperimentError(
            f"{option}: only --engine {SlurmEngine.name} has sites, not --engine {name}", "leave it out"
        )
    return _ON_THIS_MACHINE[name](flavour)
