"""`invoke sif`: a SIF for each environment of a flavour, for Apptainer and for Slurm."""

from collections.abc import Callable

from rich.console import Console

from essence.commands.options import check_word
from essence.commands.terminal import teller
from essence.engines import FLAVOURS
from essence.engines.image_address import SIF
from essence.engines.image_builds import ENVIRONMENTS
from essence.engines.machine import BUILD_ELSEWHERE, check_images_platform
from essence.engines.recipes import recipe
from essence.engines.registry_image import typed_address
from essence.engines.sif_builds import make_sifs
from essence.engines.sif_fetch import fetch_sif
from essence.engines.sif_files import program
from essence.engines.sif_sources import sources, typed_source
from essence.errors import ExperimentError
from essence.paths import typed_path


def build(
    flavour: str | None, only: str | None, archives: str | None, console: Console, address: str | None = None
) -> int:
    """Make what is not there yet, of `address` where one is given, which says itself which image it is.

    Raises:
        MachineError: Apptainer is not there, or a build or its test fails.
    """
    check_word("--flavour", "flavour", flavour, FLAVOURS)
    check_word("--only", "environment", only, ENVIRONMENTS)
    check_images_platform("invoke sif", BUILD_ELSEWHERE)
    program()
    if address is not None:
        if archives:
            raise ExperimentError("--from and --archives: a SIF is made of one of the two", "leave one out")
        _of_registry(address, flavour, only, teller(console))
        return 0
    images = [recipe(name, flavour or "cuda") for name in ENVIRONMENTS if only in (None, name)]
    found = sources(images, typed_path("--archives", archives) if archives else None)
    make_sifs(found, teller(console))
    return 0


def _of_registry(typed: str, flavour: str | None, only: str | None, say: Callable[[str], None]) -> None:
    address = typed_address("--from", typed)
    if address.scheme == SIF:
        fetch_sif(address, flavour, only, say)
    else:
        make_sifs([typed_source(address, flavour, only)], say)
