"""`invoke images`: build the three images of a flavour with docker buildx, and push them to a registry."""

from collections.abc import Callable

from rich.console import Console

from essence.commands.options import check_word
from essence.commands.terminal import teller
from essence.engines import FLAVOURS
from essence.engines.choice import docker_version
from essence.engines.image_address import check_place
from essence.engines.image_builds import ENVIRONMENTS, bake, building, check_buildx
from essence.engines.machine import BUILD_ELSEWHERE, check_images_platform
from essence.engines.published_images import publish, published_file, published_lines, read_to_publish
from essence.engines.recipes import ImageRecipe, recipe


def build(flavour: str, only: str | None, console: Console, place: str | None = None) -> int:
    """Build, and say what came out; with `place`, a registry, push what is built, and build only what is not.

    Raises:
        MachineError: Docker or buildx is not there, the build fails, or the registry does not take an image.
    """
    check_word("--flavour", "flavour", flavour, FLAVOURS)
    check_word("--only", "environment", only, ENVIRONMENTS)
    check_images_platform("invoke images", BUILD_ELSEWHERE)
    images = [recipe(name, flavour) for name in ENVIRONMENTS if only in (None, name)]
    say = teller(console)
    if place is not None:
        _push(images, check_place("--push", place), say)
        return 0
    _bake(flavour, images, say)
    return 0


def _bake(flavour: str, images: list[ImageRecipe], say: Callable[[str], None]) -> None:
    """Build them; first it is said what that takes, and looked whether the disk has it."""
    # Imported here: it takes a while, and wrong words are told at once.
    from essence.engines.docker import DockerEngine

    check_buildx()
    # The disk of an engine that the docker command alone knows, as by a context, is not looked at.
    if docker_version():
        DockerEngine(flavour).check_building(images)
    say(building(images))
    for name, digest in bake(flavour, [image.environment for image in images]).items():
        say(f"{name}: {digest}")


def _push(images: list[ImageRecipe], place: str, say: Callable[[str], None]) -> None:
    """Each is written down as soon as the registry has it."""
    # Imported here as above.
    from essence.engines.docker import DockerEngine
    from essence.engines.image_transfers import push

    read_to_publish()  # a push takes long, and what it cannot write down would be lost
    engines = {image: DockerEngine(image.flavour) for image in images}
    for image, engine in engines.items():
        # All before the first is written down: in an image stands whether the project was changed.
        if not engine.is_current(image):
            _bake(image.flavour, [image], say)
    for image, engine in engines.items():
        address = push(engine.client, image, engine.built(image.environment), place, say)
        publish(image, address)
        say(f"{published_file()}: {image.flavour}.{published_lines({image.environment: str(address)}).strip()}")
