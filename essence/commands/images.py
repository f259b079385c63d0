"""`invoke images`: build the three images of a flavour with docker buildx, and push them to a registry."""

from collections.abc import Callable

from rich.console import Console

from essence.commands.options import check_word
from essence.commands.terminal import teller
from essence.engines import FLAVOURS
from essence.engines.image_address import check_place
from essence.engines.image_builds import ENVIRONMENTS, bake
from essence.engines.machine import BUILD_ELSEWHERE, check_images_platform
from essence.engines.published_images import publish, published_file, published_lines, read_to_publish
from essence.engines.recipes import ImageRecipe, recipe
from essence.settings import EnvironmentName


def build(flavour: str, only: str | None, console: Console, place: str | None = None) -> int:
    """Build, and say what came out; with `place`, a registry, push what is built, and build only what is not.

    Raises:
        MachineError: Docker or buildx is not there, the build fails, or the registry does not take an image.
    """
    check_word("--flavour", "flavour", flavour, FLAVOURS)
    check_word("--only", "environment", only, ENVIRONMENTS)
    check_images_platform("invoke images", BUILD_ELSEWHERE)
    names = [name for name in ENVIRONMENTS if only in (None, name)]
    say = teller(console)
    if place is not None:
        _push([recipe(name, flavour) for name in names], check_place("--push", place), say)
        return 0
    _bake(flavour, names, say)
    return 0


def _bake(flavour: str, names: list[EnvironmentName], say: Callable[[str], None]) -> None:
    for name, digest in bake(flavour, names).items():
        say(f"{name}: {digest}")


def _push(images: list[ImageRecipe], place: str, say: Callable[[str], None]) -> None:
    """Each is written down as soon as the registry has it."""
    # Imported here: building needs no client of Docker.
    from essence.engines.docker import DockerEngine
    from essence.engines.image_transfers import push

    read_to_publish()  # a push takes long, and what it cannot write down would be lost
    engines = {image: DockerEngine(image.flavour) for image in images}
    for image, engine in engines.items():
        # All before the first is written down: in an image stands whether the project was changed.
        if not engine.is_current(image):
            _bake(image.flavour, [image.environment], say)
    for image, engine in engines.items():
        address = push(engine.client, image, engine.built(image.environment), place, say)
        publish(image, address)
        say(f"{published_file()}: {image.flavour}.{published_lines({image.environment: str(address)}).strip()}")
