"""The disk that a build of images is asked for is what it takes: no less, and not what it shares twice."""

import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from essence.engines import docker as docker_engine
from essence.engines.build_cache import INSTALLING, CacheRecord, kept_gib
from essence.engines.docker import DockerEngine
from essence.engines.image_builds import (
    ENVIRONMENTS,
    WHEELS_VARIABLE,
    building_gib,
    to_be_made,
    wheels_gib,
)
from essence.engines.recipes import ImageRecipe, recipe
from essence.engines.sif_builds import WORK_VARIABLES, check_sources
from essence.engines.sif_sources import ImageSource, of_base
from essence.errors import MachineError
from essence.files import GIB
from support.project import PROJECT

Usage = namedtuple("Usage", "total used free")
TRAIN = recipe("train", "cpu")
CPU = [recipe(environment, "cpu") for environment in ENVIRONMENTS]
MEASURED_GIB = 9.5
"""What a disk of an engine's own had in use at most while the three images of the flavour cpu were built on it."""


@pytest.fixture(autouse=True)
def without_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WHEELS_VARIABLE, raising=False)


def own_gib(image: ImageRecipe) -> float:
    """Without its base: the environment in two layers, and its packages in the cache."""
    return 2 * image.size.installed_gib + image.size.packages_gib


def test_one_base_counts_once_and_each_environment_with_its_packages() -> None:
    assert building_gib(CPU) == pytest.approx(0.2 + sum(map(own_gib, CPU)))
    assert MEASURED_GIB <= building_gib(CPU) <= 1.1 * MEASURED_GIB
    train, evaluation = (recipe(name, "cuda") for name in ("train", "eval"))
    assert train.base != evaluation.base
    assert building_gib([train, evaluation]) == pytest.approx(building_gib([train]) + building_gib([evaluation]))
    assert building_gib([]) == 0 and to_be_made([]) == ""
    assert "4.4 GiB of disk meanwhile" in to_be_made([TRAIN])


def test_no_package_holds_more_than_its_environment() -> None:
    for flavour in ("cpu", "cuda"):
        for image in (recipe(environment, flavour) for environment in ENVIRONMENTS):
            assert 0 < image.size.packages_gib <= image.size.installed_gib


def test_a_folder_of_wheels_is_copied_to_each_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = building_gib(CPU)
    (tmp_path / "torch.whl").write_bytes(b"1" * (1 << 20))
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path))
    assert wheels_gib() == pytest.approx(1 / 1024)
    assert building_gib(CPU) == pytest.approx(without + 3 / 1024)
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path / "absent"))
    assert building_gib(CPU) == without


Ask = Callable[[float, list[CacheRecord]], None]


class Engine:
    """A client whose engine is here, with no image."""

    class Api:
        base_url = "http+docker://localhost"

    api = Api()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def info(self) -> dict[str, str]:
        return {"DockerRootDir": str(self.folder)}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask for the room of all three images: GiB that are free, and what earlier builds have left."""

    def ask(free_gib: float, cache: list[CacheRecord]) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, int(free_gib * GIB)))
        engine = DockerEngine("cpu")
        monkeypatch.setattr(engine, "_look", lambda image: None)
        engine.client = Engine(tmp_path)  # type: ignore[assignment]
        monkeypatch.setattr(docker_engine, "build_cache", lambda client: cache)
        engine.check_building(CPU)

    return ask


def test_a_disk_a_bit_too_small_is_refused_and_one_that_suffices_is_not(asked: Ask, tmp_path: Path) -> None:
    needed = building_gib(CPU)
    asked(needed + 0.01, [])
    said = f"{tmp_path}: {needed - 0.1:.1f} GiB are free, and making essence-download:cpu, essence-train:cpu, "
    with pytest.raises(MachineError, match=re.escape(said) + rf"essence-eval:cpu takes about {needed:.1f}; make room"):
        asked(needed - 0.1, [])


def record(description: str, gib: float) -> CacheRecord:
    told = {"Type": "regular", "Description": description, "Size": int(gib * GIB), "Shared": False}
    return CacheRecord.model_validate(told)


STEP = f"from exec /bin/sh -c {INSTALLING}train-${{FLAVOUR}}.txt"
"""As BuildKit tells of the step that installs an environment: of any flavour."""


def installed(gib: float) -> CacheRecord:
    return record(f"mount / {STEP}", gib)


def packages(gib: float) -> CacheRecord:
    return record(f'cached mount /root/.cache {STEP} with id "//root/.cache"', gib)


def test_what_a_build_that_was_cut_off_has_left_is_not_asked_for_again(asked: Ask) -> None:
    """Of the words of BuildKit that Docker's engine tells; what another project has left counts for nothing."""
    left = [installed(1.5), packages(1.2), record("mount / from exec /bin/sh -c apt-get install all", 30.0)]
    assert kept_gib(left, CPU) == pytest.approx(2.7)
    asked(building_gib(CPU) - 2.69, left)
    with pytest.raises(MachineError, match="GiB are free"):
        asked(building_gib(CPU) - 2.8, left)
    assert kept_gib([*left, *left], [TRAIN]) == pytest.approx(2.7), "never more than such a build has"
    assert kept_gib(left, [recipe("download", "cpu")]) == pytest.approx(0.4), "packages alone"


def test_an_environment_of_another_flavour_is_none_that_is_left() -> None:
    """BuildKit's words are the same of both; packages alone may serve, as far as can be told."""
    cuda = recipe("train", "cuda")
    assert kept_gib([installed(5.1)], [TRAIN]) == 0 == kept_gib([installed(1.5)], [cuda])
    assert kept_gib([installed(0.7)], [TRAIN]) == 0, "a step that was cut off leaves no layer"
    assert kept_gib([installed(1.4)], [TRAIN]) == pytest.approx(1.4)
    both = [installed(1.6), installed(1.4), installed(5.3)]
    assert kept_gib(both, [TRAIN]) == pytest.approx(1.5) and kept_gib(both, [cuda]) == pytest.approx(5.1)
    assert kept_gib([installed(5.1), packages(5.0)], [TRAIN]) == pytest.approx(1.2)


def test_the_dockerfiles_install_in_the_words_by_which_it_is_known() -> None:
    for file in (PROJECT / "docker").glob("*.Dockerfile"):
        assert f"{INSTALLING}{file.stem}-" in file.read_text(encoding="utf-8")


@pytest.fixture
def room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, ImageSource], None]:
    """Ask whether so many GiB suffice for making the SIF of trainings, all of it on one disk."""
    for name in WORK_VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(tmp_path / "sif"))

    def ask(free_gib: float, source: ImageSource) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, int(free_gib * GIB)))
        check_sources([(TRAIN, source)])

    return ask


SIF_SOURCES = {
    "docker": (ImageSource("docker-daemon", "it", "sha256:1", unpacked_gib=1.55), 5.3),
    "archive": (ImageSource("docker-archive", "it", "sha256:1", unpacked_gib=1.55), 3.7),
    "base": (of_base(TRAIN), 3.0),
    "registry": (ImageSource("docker", "it", "sha256:1", gib=0.6), 2.8),
}
"""What a SIF is made of, and the GiB that Apptainer had at most where it works: measured of a Docker engine, where that
is an archive, layers, files, and the SIF; added up of these parts for the others."""


@pytest.mark.parametrize(("source", "work_gib"), SIF_SOURCES.values(), ids=SIF_SOURCES)
def test_what_suffices_for_a_sif_is_let_and_what_does_not_is_refused(
    room_for: Callable[[float, ImageSource], None], source: ImageSource, work_gib: float
) -> None:
    sif_gib = 0.6
    room_for(1.1 * work_gib + sif_gib, source)
    with pytest.raises(MachineError, match="GiB are free, and making essence-train:cpu takes about"):
        room_for(0.99 * work_gib + sif_gib, source)
