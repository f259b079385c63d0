"""Building the images of Docker: all that a flavour has, or those that a run lacks, with docker buildx."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from essence.engines.published_images import published, published_file
from essence.engines.recipes import ImageRecipe, recipe, remember_digest
from essence.errors import MachineError
from essence.files import GIB
from essence.paths import typed_path
from essence.plan.experiment import PROJECT
from essence.record.facts import code_facts
from essence.record.run_directory import hold
from essence.settings import EnvironmentName

ENVIRONMENTS: tuple[EnvironmentName, ...] = get_args(EnvironmentName)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Names that BuildKit knows: a step of a build has them, and no layer and no history."""
WHEELS_VARIABLE = "PIP_FIND_LINKS"
"""Names a folder of wheels to take before the package index."""
OVERLAY_VARIABLE = "ESSENCE_BAKE_FILE"
"""Names a further bake file, as one that takes the bases from a mirror of the registry."""
BUILT_FROM = ("docker", "locks", ":(exclude)locks/images.toml")
"""Where a published image is to be had is no part of it."""
UNPACKED = 3
"""About how many times its compressed size an image takes while it is fetched."""
LAYERS = 2
"""How often a build has what it installs: in a layer of its own, and in the image."""
INSTALL = "install docker with its plugin buildx"


def to_be_made(images: Iterable[ImageRecipe]) -> str:
    """Which images a run makes or pulls first, and about what they take; no registry is asked."""
    images = list(images)
    pulled = [image for image in images if published(image)]
    made = [image for image in images if image not in pulled]
    told = [_takes(made, "made first", building_gib(made))]
    told += [_takes(pulled, f"pulled, as {published_file()} names them, first", UNPACKED * _compressed_gib(pulled))]
    return "; ".join(filter(None, told))


def building(images: Iterable[ImageRecipe]) -> str:
    """What is said before images are built."""
    images = list(images)
    return f"{_takes(images, 'built', building_gib(images))}, less where layers are kept"


def _takes(images: list[ImageRecipe], what: str, disk_gib: float) -> str:
    if not images:
        return ""
    names, gib = ", ".join(image.name for image in images), _compressed_gib(images)
    return f"{names}: to be {what}, about {gib:.1f} GiB compressed, {disk_gib:.1f} GiB of disk meanwhile"


def _compressed_gib(images: list[ImageRecipe]) -> float:
    return sum(image.size.compressed_gib for image in images)


def building_gib(images: Iterable[ImageRecipe]) -> float:
    """About what images take of a disk while they are built, and afterwards until Docker's cache is pruned.

    Images on one base have it once. They are built side by side: what two environments hold is fetched by each, and
    lies twice in the cache of packages.
    """
    images = list(images)
    bases = {image.base: image.size.base_gib for image in images}
    sizes = [image.size for image in images]
    wheels = len(images) * wheels_gib()
    return sum(bases.values()) + sum(LAYERS * size.installed_gib + size.packages_gib for size in sizes) + wheels


def wheels_gib() -> float:
    """Of the folder of wheels that each build is handed, where PIP_FIND_LINKS names one."""
    folder = Path(os.environ.get(WHEELS_VARIABLE) or os.devnull)
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) / GIB if folder.is_dir() else 0.0


def bake(flavour: str, targets: Iterable[EnvironmentName], overlay: Path | None = None) -> dict[str, str]:
    """Build these images; name -> digest of its configuration. buildx itself shows how far it is.

    overlay: a further bake file; without one, that of ESSENCE_BAKE_FILE.

    Raises:
        MachineError: Docker or buildx is not there, or the build fails.
    """
    check_buildx()
    place = PROJECT / ".cache" / "images"
    record = place / "built.json"
    with hold(place, "the building of images", "invoke images"):
        done = subprocess.run(
            [*bake_command(list(targets), overlay or _overlay()), "--metadata-file", str(record)],
            cwd=PROJECT,
            env=build_environment(bake_variables(flavour)),
            check=False,
        )
        if done.returncode:
            raise MachineError(f"docker buildx bake ended with code {done.returncode}; what it says is above")
        return _digests(record)


def _digests(record: Path) -> dict[str, str]:
    """What buildx says that it has built."""
    digests = {}
    for built in json.loads(record.read_text(encoding="utf-8")).values():
        if isinstance(built, dict) and "image.name" in built:
            digests[built["image.name"]] = built["containerimage.config.digest"]
            remember_digest(built["containerimage.digest"], built["containerimage.config.digest"])
    return digests


def _overlay() -> Path | None:
    text = os.environ.get(OVERLAY_VARIABLE)
    return typed_path(OVERLAY_VARIABLE, text) if text else None


def bake_command(targets: list[str], overlay: Path | None = None) -> list[str]:
    """The build as an argv. Without provenance, which holds times, so that the same input gives the same digest."""
    files = ["--file", "docker/bake.hcl", *(["--file", str(overlay)] if overlay else [])]
    return ["docker", "buildx", "bake", *files, "--provenance=false", *targets]


def bake_variables(flavour: str) -> dict[str, str]:
    """What `docker/bake.hcl` is given."""
    code, _ = code_facts(PROJECT)
    commit = code["commit"] or "unknown"
    variables = {
        "FLAVOUR": flavour,
        "COMMIT": f"{commit}{' with changes' if code['dirty'] else ''}",
        "SOURCE_DATE_EPOCH": source_date_epoch(),
        "BUILDX_BAKE_ENTITLEMENTS_FS": "0",
        "CERTIFICATES": os.environ.get("SSL_CERT_FILE", ""),
        "WHEELS": os.environ.get(WHEELS_VARIABLE, ""),
    }
    for name in PROXIES:
        variables[name] = os.environ.get(name) or os.environ.get(name.lower(), "")
    for environment in ENVIRONMENTS:
        image = recipe(environment, flavour)
        variables[f"{environment.upper()}_LOCK"] = image.lock_sha256
        variables[f"{environment.upper()}_BASE"] = image.base
        variables[f"{environment.upper()}_SOURCE"] = image.source_sha256
    return variables


OF_A_BUILD = re.compile(r"(DOCKER|BUILDX|BUILDKIT)_.*")
WHICH_ENGINE = re.compile(r"DOCKER_(HOST|CONTEXT|CONFIG|CERT_PATH|TLS|TLS_VERIFY|API_VERSION)|BUILDX_(BUILDER|CONFIG)")


def build_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The caller's, without what would build other images: for another platform, or with another builder's options."""
    own = os.environ.items()
    return {n: v for n, v in own if not OF_A_BUILD.fullmatch(n) or WHICH_ENGINE.fullmatch(n)} | dict(variables)


def source_date_epoch() -> str:
    """When environments were last changed: the time of everything in an image."""
    command = ["git", "-C", str(PROJECT), "log", "-1", "--format=%ct", "--", *BUILT_FROM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0"


def check_buildx() -> None:
    """MachineError unless images can be built here."""
    if not shutil.which("docker"):
        raise MachineError("building images needs the docker command, which is not installed here", INSTALL)
    for what, command, cure in (
        ("docker's plugin buildx, which is not installed", ["docker", "buildx", "version"], INSTALL),
        ("a running Docker engine", ["docker", "info"], "start it, or name one with DOCKER_HOST"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(f"building images needs {what}: {last_line(done.stderr)}", cure)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
