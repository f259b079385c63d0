"""The Docker engine: each stage is a container that has nothing but its folder, its inputs and, to fetch, the network.

A container outlives a host process that is killed. It carries the stage's folder as a label: the next run finds it,
takes it over while it works, removes it when it has ended, and never starts a second one beside it.
"""

import functools
import os
import re
import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from docker.models.containers import Container

import docker
from essence.engines.build_cache import build_cache, kept_gib
from essence.engines.docker_container import argv, creation, gpu_request
from essence.engines.docker_hosts import DockerHost
from essence.engines.docker_stage import DockerStage, remove
from essence.engines.engine import Engine, Launch, Mount, memory_kills, surroundings
from essence.engines.image_builds import bake, building_gib, check_buildx, to_be_made
from essence.engines.image_transfers import check_disk, check_room, images_here, pull
from essence.engines.machine import check_images_platform, existing, refusal
from essence.engines.recipes import (
    DIGEST_LABEL,
    ImageRecipe,
    check_decoder,
    check_digest_label,
    config_digest,
    images_of,
    recipe,
)
from essence.engines.registry_image import published_image
from essence.engines.requirement import Requirement, asked
from essence.engines.secrets import left_token, token
from essence.errors import MachineError
from essence.plan.stage_plan import PlannedStage
from essence.progress import visible_gpus
from essence.record.run_directory import RunDirectory, StageFolder
from essence.settings import EnvironmentName

API_TIMEOUT_S = 120
FOLDER, HOST, PROCESS, BORN, LOG_START, GPUS = (
    f"essence.{word}" for word in ("folder", "host", "process", "born", "log-start", "gpus")
)
"""Labels of a container: the stage's folder, who started it and when that process began, where its log begins, its
GPUs."""
CREATED = "created"
AT_WORK = [CREATED, "running", "paused", "restarting"]
"""States of a container that has GPUs, or may have them in a moment."""
STARTING_S = 120.0
"""One that is older and was not started never will be. An engine goes on with a start whose caller was killed."""
WRITTEN = "written"
TOOLKIT = "GPUs in containers need the NVIDIA Container Toolkit on this machine"


class DockerEngine(Engine):
    """Containers of the engine that DOCKER_HOST or the usual socket leads to."""

    name = "docker"

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour

    @functools.cached_property
    def client(self) -> docker.DockerClient:
        """The connection; MachineError when no engine answers."""
        try:
            client = docker.from_env(timeout=API_TIMEOUT_S)
            client.ping()
        except (DockerException, requests.RequestException) as error:
            raise MachineError(
                f"no Docker engine answers ({_reason(error)})",
                "start it, or name one with DOCKER_HOST, or run without: --engine local",
            ) from None
        return client

    def environment(self, name: EnvironmentName) -> dict[str, str]:
        return recipe(name, self.flavour).identity()

    @functools.cache  # noqa: B019  one engine lives as long as its run
    def image(self, name: EnvironmentName) -> dict[str, str | None]:
        """Engine and image as they are here; group `image` of the manifest."""
        image = recipe(name, self.flavour)
        return {
            "engine": self.name,
            "engine_version": str(self.client.version()["Version"]),
            "digest": config_digest(self.client, self._chosen(name)),
            "base_digest": image.base.split("@")[1],
            "sif_sha256": None,
        }

    def check(self, stages: list[PlannedStage]) -> None:
        """MachineError without an engine, an image that was built from the project as it is, or GPUs for containers."""
        check_images_platform(f"engine {self.name}")
        check_decoder(stages, self.flavour)
        self.client.ping()  # also where no image is asked for
        images = images_of(stages, self.flavour)
        if absent := [image.name for image in images if self._look(image) is None]:
            raise MachineError(f"no image {' and no image '.join(absent)} here", f"build them: {self._cure()}")
        for image in images:
            self.built(image.environment)
            self.image(image.environment)
        if asking := [stage for stage in stages if stage.resources.gpus]:
            self.try_gpus(asking[0])

    def lacking(self, stages: list[PlannedStage]) -> list[ImageRecipe]:
        """Absent, or of another state of the project: their layers are kept, and a change of the code takes seconds."""
        return [image for image in images_of(stages, self.flavour) if not self.is_current(image)]

    def is_current(self, image: ImageRecipe) -> bool:
        """Whether it is here, of the project as it is."""
        try:
            self.built(image.environment)
        except MachineError:
            return False
        return True

    def check_making(self, stages: list[PlannedStage], images: list[ImageRecipe]) -> None:
        check_decoder(stages, self.flavour)
        if not (built := self._not_published(images)):
            return
        try:
            check_buildx()
        except MachineError as error:
            names = " and no image ".join(image.name for image in built)
            cure = f"{error.cure}, or pull published images, or run without: --engine local"
            raise MachineError(f"no image {names} here, and {error.problem}", cure) from None
        self.check_building(built)

    def check_building(self, images: list[ImageRecipe]) -> None:
        """MachineError where the engine's disk, if it is here, has no room for those that are absent altogether."""
        # One of another state is made anew from the layers that are kept.
        if absent := [image for image in images if self._look(image) is None]:
            names = ", ".join(image.name for image in absent)
            cure = "make room (docker system prune), or move Docker's data-root to a larger disk"
            gib, what = building_gib(absent), f"making {names} takes"
            try:
                check_disk(self.client, gib, what, cure)
            except MachineError:
                # What an earlier build has left is used, and asking for it takes a while.
                check_disk(self.client, gib - kept_gib(build_cache(self.client), absent), what, cure)

    def make(self, images: list[ImageRecipe], say: Callable[[str], None]) -> None:
        """Pull what is published, build the rest."""
        for image in images:
            if found := published_image(image):
                pull(self.client, image, found, say)
        if built := self._not_published(images):
            say(to_be_made(built))
            for name, digest in bake(self.flavour, [image.environment for image in built]).items():
                say(f"{name}: {digest}")

    def _not_published(self, images: list[ImageRecipe]) -> list[ImageRecipe]:
        """Those that are to be built; MachineError where one that is published cannot be pulled."""
        found = {image: published_image(image) for image in images}
        for there in filter(None, found.values()):
            check_room(self.client, there)
        return [image for image, there in found.items() if there is None]

    def try_gpus(self, stage: PlannedStage) -> None:
        """MachineError when a container gets no GPUs, which would otherwise be told hours later, at the first one."""
        image = self._found(recipe(stage.runs_in, self.flavour))
        asked = stage.resources.gpus
        gpus = [gpu_request(asked, visible_gpus()[:asked])]
        container = self.client.containers.create(image.id, ["true"], network_mode="none", device_requests=gpus)
        try:
            container.start()
        except APIError as error:
            raise MachineError(f"Docker gives its containers no GPUs ({_reason(error)})", TOOLKIT) from None
        finally:
            container.remove(force=True)

    def built(self, name: EnvironmentName) -> Any:
        """The image of an environment; MachineError when it is absent or of another state of the project."""
        image = recipe(name, self.flavour)
        found = self._found(image)
        image.check_labels(found.labels, f"the image {image.name}", self._cure())
        if DIGEST_LABEL in found.labels:
            check_digest_label(found.labels, config_digest(self.client, found), f"the image {image.name}", self._cure())
        return found

    @functools.cache  # noqa: B019  one engine lives as long as its run
    def _chosen(self, name: EnvironmentName) -> Any:
        """The image that all containers of this run are made of, as the manifests say, whatever is built meanwhile."""
        return self._found(recipe(name, self.flavour))

    def _found(self, image: ImageRecipe) -> Any:
        if (found := self._look(image)) is None:
            raise MachineError(f"no image {image.name} here", f"build it: {self._cure()}")
        return found

    def _look(self, image: ImageRecipe) -> Any:
        """The image of that name; where it is absent or of another state, one that was pulled by hand and is right."""
        try:
            named = self.client.images.get(image.name)
        except ImageNotFound:
            named = None
        return named if named and image.is_right(named.labels) else self._pulled(image) or named

    def _pulled(self, image: ImageRecipe) -> Any:
        """An image of a registry, `.../essence-train`, with the labels of the project as it is; None without one."""
        wanted = [f"{label}={value}" for label, value in image.wanted_labels().items()]
        for found in images_here(self.client, wanted):
            names = [*found.tags, *(found.attrs.get("RepoDigests") or [])]
            if any(re.search(rf"/essence-{image.environment}[:@]", name) for name in names):
                return found
        return None

    def _cure(self) -> str:
        return f"make images FLAVOUR={self.flavour}"

    def render(self, surroundings: Launch) -> str:
        """The same container as a command line."""
        return shlex.join(argv(surroundings, recipe(surroundings.environment, self.flavour).name))

    def start(self, surroundings: Launch) -> DockerStage:
        """Start a container, or take over the one that works on the stage already."""
        try:
            for container in self._left_behind(surroundings):
                if container.status in ("created", "running", "paused") and container.attrs["State"]["Pid"]:
                    mine = _owned(container)
                    secret = left_token(surroundings.folder.path) if mine else None
                    return DockerStage(container, surroundings, int(container.labels[LOG_START]), mine, secret)
                remove(container)
            return self._start(surroundings)
        except ImageNotFound:
            name = recipe(surroundings.environment, self.flavour).name
            found = f"{surroundings.title}: the image {name} that this run began with is no longer here"
            raise MachineError(found, f"build it: {self._cure()}") from None
        except (APIError, requests.RequestException) as error:
            raise _cannot_start(surroundings, error) from error

    def gpus_in_use(self) -> dict[str, Path] | None:
        """Those of all containers of stages on this engine, whoever started them: that run, or are being started."""
        try:
            # The lower call: the higher one looks at each container, and waits for one that is being started.
            found = self.client.api.containers(all=True, filters={"label": GPUS, "status": AT_WORK})
        except (APIError, requests.RequestException):
            return None
        oldest = time.time() - STARTING_S
        return {
            name: Path(container["Labels"].get(FOLDER, ""))
            for container in found
            if container["State"] != CREATED or container["Created"] >= oldest
            for name in container["Labels"][GPUS].split(",")
            if name
        }

    def _left_behind(self, surroundings: Launch) -> list[Container]:
        labels = [f"{FOLDER}={surroundings.folder.path}"]
        return list(self.client.containers.list(all=True, filters={"label": labels}, ignore_removed=True))

    def _start(self, surroundings: Launch) -> DockerStage:
        log_start = surroundings.folder.log.stat().st_size if surroundings.folder.log.is_file() else 0
        secret = token(surroundings.folder.path) if surroundings.network else None
        image = self._chosen(surroundings.environment)
        container = None
        try:
            options = creation(surroundings, secret, self.host)
            labels = {**_owner(), FOLDER: str(surroundings.folder.path), LOG_START: str(log_start)}
            labels[GPUS] = ",".join(surroundings.gpus)
            container = self.client.containers.create(image.id, labels=labels, **options)
            kills_before = memory_kills()
            container.start()
        except BaseException:
            if container is not None:
                remove(container)
            if secret:
                secret.forget()
            raise
        return DockerStage(container, surroundings, log_start, True, secret, kills_before)

    @functools.cached_property
    def host(self) -> DockerHost:
        """What kind of host this is."""
        return DockerHost.of(self.client.info())

    def requirements(
        self, stages: list[PlannedStage], run_directory: RunDirectory, expected_s: Mapping[str, float]
    ) -> Iterator[Requirement]:
        """Where the images are there, also that a container writes where the stages will, as the caller."""
        found = list(super().requirements(stages, run_directory, expected_s))
        yield from found
        place = existing(run_directory.root)
        if stages and all(one.met for one in found) and not self.lacking(stages) and refusal(place) is None:
            told = f"a container writes to {place}, and the files are this user's"
            yield asked("folders in containers", functools.partial(self.try_writing, stages[0], place), told)

    def try_writing(self, stage: PlannedStage, place: Path) -> None:
        """MachineError where a container cannot write what is the caller's: found out by doing so."""
        cure = "name a run directory on a disk of this machine with --runs, or run without Docker: --engine local"
        try:
            with tempfile.TemporaryDirectory(prefix=".essence-", dir=place) as name:
                self._write_inside(stage, Path(name).resolve())
                if not (file := Path(name) / WRITTEN).is_file():
                    raise MachineError(f"what a container writes to {place} is not there on this machine", cure)
                if file.stat().st_uid != os.getuid():
                    raise MachineError(f"what a container writes to {place} belongs to user {file.stat().st_uid}", cure)
        except (APIError, OSError, _RefusedError) as error:
            raise MachineError(f"no container can write to {place} ({_reason(error)})", cure) from None

    def _write_inside(self, stage: PlannedStage, folder: Path) -> None:
        """Write one file as a stage would whose folder this is."""
        planned = surroundings(stage, RunDirectory(folder))
        around = replace(planned, folder=StageFolder(folder), mounts=(Mount(folder, folder, False),), network=False)
        options = creation(replace(around, resources=stage.resources.model_copy(update={"gpus": 0})), None, self.host)
        options["command"] = ["python", "-c", f"open({WRITTEN!r}, 'w').close()"]
        container = self.client.containers.create(self._chosen(stage.runs_in).id, **options)
        try:
            container.start()
            if code := int(container.wait(timeout=API_TIMEOUT_S).get("StatusCode", 1)):
                said = container.logs(tail=1).decode(errors="replace").strip()
                raise _RefusedError(said or f"exit code {code}")
        finally:
            remove(container)


class _RefusedError(Exception):
    """What was tried in a container failed there."""


def answering_version(timeout_s: int) -> str | None:
    """The version of the Docker engine that answers in time; None without one."""
    try:
        return str(docker.from_env(timeout=timeout_s).version()["Version"])
    except (DockerException, requests.RequestException):
        return None


def _owner() -> dict[str, str]:
    return {HOST: socket.gethostname(), PROCESS: str(os.getpid()), BORN: str(psutil.Process().create_time())}


def _owned(container: Container) -> bool:
    """Whether nobody else watches over a container: then it is this process's to log and to stop."""
    labels = container.labels
    if labels.get(HOST) != socket.gethostname():
        return False
    try:
        same = str(psutil.Process(int(labels[PROCESS])).create_time()) == labels[BORN]
    except psutil.Error:
        return True
    return not same or int(labels[PROCESS]) == os.getpid()


def _cannot_start(surroundings: Launch, error: Exception) -> MachineError:
    reason = _reason(error)
    of_gpus = "could not select device driver" in reason or "nvidia" in reason.lower()
    found = f"{surroundings.title}: Docker cannot start its container: {reason}"
    return MachineError(found, TOOLKIT if of_gpus else "")


def _reason(error: Exception) -> str:
    """The one line of a failure that says why."""
    text = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return " ".join(str(text).split())
