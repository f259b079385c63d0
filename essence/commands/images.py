"""`invoke images`: build the three images of a flavour with docker buildx."""

from rich.console import Console

from essence.commands.options import check_word
from essence.engines import FLAVOURS
from essence.engines.image_builds import ENVIRONMENTS, bake


def build(flavour: str, only: str | None, console: Console) -> int:
    """Build, and say what came out; MachineError when Docker or buildx is not there or the build fails."""
    check_word("--flavour", "flavour", flavour, FLAVOURS)
    check_word("--only", "environment", only, ENVIRONMENTS)
    for name, digest in bake(flavour, [name for name in ENVIRONMENTS if only in (None, name)]).items():
        console.print(f"{name}: {digest}", highlight=False, soft_wrap=True)
    return 0
