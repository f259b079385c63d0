"""The images: their names and ingredients, and the check that a built one matches the project.

An environment is known by its lock and its base, which both stand in files of the project: a plan has the same keys on
a machine without Docker, and under Docker as under Apptainer. What an image holds beside them is the kit's own source,
which every key counts by itself. The image's digest is in the manifest.
"""

import functools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from essence.errors import MachineError, RecordError
from essence.files import sha256_file, write_json
from essence.plan.experiment import PROJECT
from essence.plan.stage_plan import GRADER_LOCK, PlannedStage
from essence.record.record_files import read_record
from essence.record.source_key import runtime_sha256
from essence.settings import STAGES_IN, EnvironmentName, SamplingSettings

if TYPE_CHECKING:
    import docker

DOCKERFILES = PROJECT / "docker"
LOCKS = PROJECT / "locks"
DIGESTS = PROJECT / ".cache" / "image-digests.json"
LEAST_DRIVERS = {"13.0": "580.65.06"}
"""CUDA of a base image -> the oldest driver for Linux that its release notes name."""
COMPATIBLE_DRIVER = "535"
"""On data-centre GPUs the base's forward-compatibility libraries (cuda-compat) serve drivers from this branch on."""
DATA_CENTRE = re.compile(r"\b(T4|A2|A10|A16|A30|A40|A100|L4|L40S?|H20|H100|H200|GH200|B100|B200|GB200|B300)\b")
"""Names of GPUs that forward compatibility is for; GeForce and most workstation GPUs are not."""


class ImageSize(NamedTuple):
    """About how large an image is."""

    compressed_gib: float
    """As a SIF, and its layers in a registry."""
    base_gib: float
    """Unpacked, with Python and a compiler."""
    installed_gib: float
    """Unpacked, of the environment."""
    packages_gib: float
    """Of it what packages hold, without bytecode: what a cache of them takes."""

    @property
    def unpacked_gib(self) -> float:
        return self.base_gib + self.installed_gib


SIZES: dict[tuple[str, str], ImageSize] = {
    ("download", "cpu"): ImageSize(0.2, 0.2, 0.5, 0.4),
    ("train", "cpu"): ImageSize(0.6, 0.2, 1.5, 1.2),
    ("eval", "cpu"): ImageSize(0.6, 0.2, 1.5, 1.2),
    ("train", "cuda"): ImageSize(3.2, 0.6, 5.1, 5.0),
    ("eval", "cuda"): ImageSize(9.0, 7.0, 8.5, 8.2),
}
"""What is installed was measured (docs/containers.md); of CUDA's bases, which were not fetched, it is an assumption."""
LOCK_LABEL, BASE_LABEL, SOURCE_LABEL = (
    "essence.lock-sha256",
    "org.opencontainers.image.base.name",
    "essence.source-sha256",
)
ENVIRONMENT_LABEL, FLAVOUR_LABEL = "essence.environment", "essence.flavour"
DIGEST_LABEL = "essence.config-digest"
"""Of a SIF that was made of a Docker image."""


@dataclass(frozen=True)
class ImageRecipe:
    """One image of one flavour."""

    environment: EnvironmentName
    flavour: str

    @property
    def name(self) -> str:
        """Its tag: `essence-train:cuda`."""
        return f"essence-{self.environment}:{self.flavour}"

    @property
    def lock(self) -> Path:
        return LOCKS / f"{self.environment}-{self.flavour}.txt"

    @property
    def dockerfile(self) -> Path:
        return DOCKERFILES / f"{self.environment}.Dockerfile"

    @property
    def lock_sha256(self) -> str:
        return sha256_file(self.lock)

    @property
    def source_sha256(self) -> str:
        """Hash of the kit's source, as far as it runs in it; comments and docstrings do not count."""
        return runtime_sha256(STAGES_IN[self.environment])

    @property
    def base(self) -> str:
        """The pinned base, `name:tag@sha256:...`, as FROM has it."""
        return bases(self.dockerfile)["python" if self.environment == "download" else f"base-{self.flavour}"]

    @property
    def size(self) -> ImageSize:
        return SIZES[self.environment, self.flavour]

    def identity(self) -> dict[str, str]:
        """What every key of a stage counts of its environment."""
        identity = {"lock_sha256": self.lock_sha256, "base": self.base}
        if self.environment == "eval":
            identity[GRADER_LOCK] = sha256_file(LOCKS / "math-verify-0.9.txt")
        return identity

    def wanted_labels(self) -> dict[str, str]:
        """What the labels say of an image that was built from the project as it is.

        What a repository holds at a commit does not depend on who fetches it: the source of downloads may be older.
        """
        wanted = {LOCK_LABEL: self.lock_sha256, BASE_LABEL: self.base}
        if self.environment != "download":
            wanted[SOURCE_LABEL] = self.source_sha256
        return wanted

    def is_right(self, labels: dict[str, str]) -> bool:
        """Whether labels are those of the project as it is."""
        return all(labels.get(label) == value for label, value in self.wanted_labels().items())

    def check_labels(self, labels: dict[str, str], found: str, cure: str) -> None:
        """MachineError when an image was built from another lock, base or source than the project has now."""
        for label, value in self.wanted_labels().items():
            if labels.get(label) != value:
                raise MachineError(
                    f"{found} was built from another state of the project: its label {label} is "
                    f"{labels.get(label, 'absent')}, wanted {value}",
                    cure,
                )


def check_digest_label(labels: dict[str, str], digest: str, found: str, cure: str) -> None:
    """MachineError where a label names another digest of the configuration than was computed."""
    if (said := labels.get(DIGEST_LABEL, digest)) != digest:
        raise MachineError(f"{found}: its label {DIGEST_LABEL} is {said}, its bytes have {digest}", cure)


def cuda_of(base: str) -> str | None:
    """The CUDA of a base image, `13.0.0`; None for one without."""
    found = re.match(r"nvidia/cuda:([0-9.]+)-", base)
    return found[1] if found else None


def least_driver(cuda: str) -> str:
    """The oldest driver that a CUDA, `13.0.0`, runs with."""
    return LEAST_DRIVERS[cuda.rpartition(".")[0]]


def recipe(environment: EnvironmentName, flavour: str) -> ImageRecipe:
    """The image that an environment has in a flavour; that of downloads is the same in all."""
    return ImageRecipe(environment, "cpu" if environment == "download" else flavour)


def images_of(stages: Iterable[PlannedStage], flavour: str) -> list[ImageRecipe]:
    """The images that stages run in, each once."""
    return [recipe(name, flavour) for name in sorted({stage.runs_in for stage in stages})]


def config_digest(client: "docker.DockerClient", image: Any) -> str:
    """The digest of an image's configuration: the same under every engine, and in the SIF that is made of it.

    With Docker's older store it is the image's id. With containerd's the id is that of the manifest; `make images`
    remembers which configuration it names, and of an image from elsewhere the archive is read, once.
    """
    driver = dict(client.info().get("DriverStatus") or [])
    if "containerd" not in str(driver.get("driver-type", "")):
        return str(image.id)
    if image.id not in _known_digests():
        remember_digest(image.id, _read_config_digest(image))
    return _known_digests()[image.id]


def remember_digest(image_id: str, digest: str) -> None:
    """Write down which configuration an image has."""
    write_json(DIGESTS, {**_known_digests(), image_id: digest})


def _known_digests() -> dict[str, str]:
    """Id of an image -> digest of its configuration; none where the file is gone or damaged, so that they are read."""
    try:
        return read_record(DIGESTS, dict[str, str], "a list of digests")
    except RecordError:
        return {}


def _read_config_digest(image: Any) -> str:
    stream = _Chunks(image.save(chunk_size=1 << 20))
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.name == "manifest.json":
                config = json.load(archive.extractfile(member))[0]["Config"]
                return f"sha256:{Path(config).name.removesuffix('.json')}"
    raise MachineError(f"image {image.id}: its archive has no manifest.json")


class _Chunks:
    """An iterator of bytes, read as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.rest = b""

    def read(self, size: int) -> bytes:
        while len(self.rest) < size and (chunk := next(self.chunks, b"")):
            self.rest += chunk
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


@functools.cache
def bases(dockerfile: Path) -> dict[str, str]:
    """Stage name -> image, of every FROM that names an image outside the file."""
    text = dockerfile.read_text(encoding="utf-8")
    return {name: image for image, name in re.findall(r"^FROM (\S+@sha256:[0-9a-f]{64}) AS (\S+)$", text, re.MULTILINE)}


def check_decoder(stages: list[PlannedStage], flavour: str) -> None:
    """MachineError where completions are asked of vLLM in an image that has none."""
    asking = [s for s in stages if isinstance(s.settings, SamplingSettings) and s.settings.decoder == "vllm"]
    if asking and flavour == "cpu":
        raise MachineError(
            f"{recipe('eval', flavour).name} holds no vLLM, which decoder = 'vllm' asks for",
            "choose another flavour with --flavour, or decoder = 'transformers'",
        )
