"""`invoke sif`: a SIF for each environment of a flavour, for Apptainer and for Slurm."""

from rich.console import Console

from essence.commands.options import check_word
from essence.commands.terminal import teller
from essence.engines import FLAVOURS
from essence.engines.image_builds import ENVIRONMENTS
from essence.engines.recipes import recipe
from essence.engines.sif_builds import make_sifs, sources
from essence.engines.sif_files import program
from essence.paths import typed_path


def build(flavour: str, only: str | None, archives: str | None, console: Console) -> int:
    """Make what is not there yet; MachineError without Apptainer, or when a build or its test fails."""
    check_word("--flavour", "flavour", flavour, FLAVOURS)
    check_word("--only", "environment", only, ENVIRONMENTS)
    program()
    images = [recipe(name, flavour) for name in ENVIRONMENTS if only in (None, name)]
    found = sources(images, typed_path("--archives", archives) if archives else None)
    make_sifs(found, teller(console))
    return 0
