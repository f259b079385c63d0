"""The Apptainer engine: each stage is `apptainer exec` of a SIF, with nothing of the host but its folders.

The command line is made here for batch texts too (`slurm/job_text.py`). A SIF is made of a Docker image and has its
identity, so what is done under one of the two engines is done under the other.
"""

import contextlib
import fcntl
import functools
import os
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from essence.engines.apptainer_faults import cure_of
from essence.engines.apptainer_stage import ApptainerStage, host_variables, plain
from essence.engines.engine import DEVICE_ORDER, NETWORK_VARIABLES, Engine, Launch, Mount, limit_words
from essence.engines.machine import check_images_platform
from essence.engines.recipes import ImageRecipe, check_decoder, images_of, recipe
from essence.engines.secrets import Token, token
from essence.engines.sif_builds import check_sources, make_sifs
from essence.engines.sif_files import SifRecord, found_sif, missing_sifs, program, program_name, sif_file, version
from essence.engines.sif_sources import sources
from essence.errors import ExperimentError, MachineError
from essence.files import sha256_text
from essence.plan.stage_plan import PlannedStage
from essence.settings import EnvironmentName

LIFELINE = "ESSENCE_LIFELINE"
"""Tells the stage that its standard input closes when the host process is gone (`essence/progress.py`)."""
MIB_IN_GIB = 1024
WORK_DIGITS = 12
SEPARATORS = ":,\\"
"""Signs that have a meaning in Apptainer's list of folders."""


class ApptainerEngine(Engine):
    """Containers that are child processes: no daemon, no root."""

    name = "apptainer"

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour

    def environment(self, name: EnvironmentName) -> dict[str, str]:
        return recipe(name, self.flavour).identity()

    @functools.cache  # noqa: B019  one engine lives as long as its run
    def image(self, name: EnvironmentName) -> dict[str, str | None]:
        """Engine and SIF as they are here; group `image` of the manifest."""
        found = self._record(name)
        return {
            "engine": self.name,
            "engine_version": version(),
            "digest": found.config_digest,
            "base_digest": recipe(name, self.flavour).base.split("@")[1],
            "sif_sha256": found.sha256,
        }

    @functools.cache  # noqa: B019  one engine lives as long as its run
    def _record(self, name: EnvironmentName) -> SifRecord:
        """What the SIF was when this run first looked, which the manifests say."""
        return found_sif(recipe(name, self.flavour), self._cure())

    def check(self, stages: list[PlannedStage]) -> None:
        """MachineError without Apptainer, a SIF that was made from the project as it is, or GPUs for containers."""
        check_images_platform(f"engine {self.name}")
        program()
        check_decoder(stages, self.flavour)
        images = images_of(stages, self.flavour)
        missing_sifs(images, self._cure())
        for image in images:
            self.image(image.environment)
        if images:
            self._try_start(images[0])
        if asking := [stage for stage in stages if stage.resources.gpus]:
            self._try_gpus(asking[0])

    def lacking(self, stages: list[PlannedStage]) -> list[ImageRecipe]:
        """Absent. One of another state of the project is refused instead: others may be running from that file."""
        return [image for image in images_of(stages, self.flavour) if not sif_file(image).is_file()]

    def check_making(self, stages: list[PlannedStage], images: list[ImageRecipe]) -> None:
        check_decoder(stages, self.flavour)
        for image in images_of(stages, self.flavour):
            if image not in images:
                found_sif(image, self._cure())
        check_sources(sources(images))

    def make(self, images: list[ImageRecipe], say: Callable[[str], None]) -> None:
        make_sifs(sources(images), say)

    def _try_start(self, image: ImageRecipe) -> None:
        """MachineError where no container starts, as without user namespaces; told before anything is begun."""
        rights = ["--no-privs"] if os.getuid() == 0 else []
        words = [program(), "exec", "--containall", "--cleanenv", "--no-home", *rights, "--net", "--network=none"]
        done = subprocess.run(
            [*words, str(sif_file(image)), "true"],
            capture_output=True,
            text=True,
            errors="replace",
            env=host_variables(),
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "FATAL" in line or "ERROR" in line]
            why = " ".join(map(plain, said)) or plain(done.stderr) or f"exit code {done.returncode}"
            raise MachineError(f"Apptainer starts no container here ({why})", cure_of(why))

    def _try_gpus(self, stage: PlannedStage) -> None:
        """MachineError when a container gets no GPUs: --nv says nothing where there are none."""
        image = recipe(stage.runs_in, self.flavour)
        rights = ["--no-privs"] if os.getuid() == 0 else []
        words = [program(), "exec", "--containall", "--no-home", *rights, "--nv", str(sif_file(image))]
        done = subprocess.run(
            [*words, "nvidia-smi", "--list-gpus"], capture_output=True, text=True, env=host_variables(), check=False
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise MachineError(
                f"Apptainer gives its containers no GPUs ({plain(said[-1]) if said else 'nvidia-smi fails in them'})",
                "install NVIDIA's driver with nvidia-smi on this machine",
            )

    def _cure(self) -> str:
        return f"make sif FLAVOUR={self.flavour}"

    def render(self, surroundings: Launch) -> str:
        """The same container as a command line."""
        folder = work_folder(surroundings)
        return f"mkdir -p {shlex.quote(str(folder))} && {shlex.join(argv(surroundings, self._sif(surroundings)))}"

    def start(self, surroundings: Launch) -> ApptainerStage:
        """Start a stage; one that a killed host left running stops by itself, and this one waits for its folder."""
        sif = self._same_sif(surroundings)
        work, held = held_work_folder(surroundings)
        secret = token(surroundings.folder.path) if surroundings.network else None
        command = argv(surroundings, sif, secret, lifeline=True)
        return ApptainerStage(command, surroundings, work, held, secret, network_variables(surroundings))

    def _same_sif(self, surroundings: Launch) -> Path:
        """The SIF; MachineError when another was put in its place since this run began."""
        file, known = self._sif(surroundings), self._record(surroundings.environment)
        if not (file.is_file() and known.is_of(file)):
            raise MachineError(f"{file}: is not the file that this run began with", "issue the command again")
        return file

    def _sif(self, surroundings: Launch) -> Path:
        return sif_file(recipe(surroundings.environment, self.flavour))


def argv(around: Launch, sif: Path, secret: Token | None = None, lifeline: bool = False) -> list[str]:
    """The whole command line; a token is only a file in it. `lifeline`: standard input says that the host lives."""
    resources = around.resources
    mounts = [*around.mounts, *([secret.mount] if secret else [])]
    # A root user has capabilities to give up; any other has none inside.
    words = apptainer_words(around, binds(mounts), no_network=True, no_privileges=around.user[0] == 0)
    words.append(f"--workdir={work_folder(around)}")
    words += [f"--memory={int(resources.memory_gib * MIB_IN_GIB)}M"] if resources.memory_gib else []
    variables = around.contained_variables() | gpu_variables(around) | (secret.variables(inside=True) if secret else {})
    if lifeline:
        # A proxy's address may hold a password: what is started here has those apart (`network_variables`).
        variables = {name: value for name, value in variables.items() if name not in NETWORK_VARIABLES}
        variables[LIFELINE] = "1"
    stage = ["env", *(f"{name}={value}" for name, value in variables.items()), "python", *around.arguments]
    words[0] = program_name()
    return [*limit_words(resources.ulimits), *words, str(sif), *stage]


def network_variables(around: Launch) -> dict[str, str]:
    """For Apptainer's own environment, which nobody else can read: what a download is told of the network."""
    variables = around.contained_variables()
    given = {name: variables[name] for name in NETWORK_VARIABLES if name in variables}
    # How the name of a variable begins that the program hands into the container.
    return {f"{program_name().upper()}ENV_{name}": value for name, value in given.items()}


def apptainer_words(around: Launch, bound: Iterable[str], *, no_network: bool, no_privileges: bool) -> list[str]:
    """`apptainer exec` up to the image: nothing of the host but the folders in `bound`.

    `no_network` takes the network from a stage that needs none. `no_privileges` is for a root user, and needed where
    that one has not all of root's capabilities.
    """
    words = ["apptainer", "exec", "--containall", "--cleanenv", "--no-home"]
    words += ["--no-privs"] if no_privileges else []
    words += ["--nv"] if around.resources.gpus else []
    words += ["--net", "--network=none"] if no_network and not around.network else []
    words += [f"--bind={bind}" for bind in bound]
    return [*words, f"--pwd={around.folder.path}"]


def binds(mounts: Iterable[Mount]) -> list[str]:
    """`source:target:ro|rw` of each folder; ExperimentError for a path that cannot stand there."""
    mounts = list(mounts)
    for path in (path for mount in mounts for path in (mount.source, mount.target)):
        if found := next((sign for sign in SEPARATORS if sign in str(path)), None):
            raise ExperimentError(
                f"{path}: holds {found!r}, which Apptainer cannot be told",
                "name a run directory without it with --runs",
            )
    return [f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'}" for mount in mounts]


def gpu_variables(around: Launch) -> dict[str, str]:
    """So many GPUs as the stage asks for: --nv alone shows all of the machine."""
    count = around.resources.gpus
    chosen = around.chosen_gpus() or [str(index) for index in range(count)]
    return {"CUDA_DEVICE_ORDER": DEVICE_ORDER, "CUDA_VISIBLE_DEVICES": ",".join(chosen)} if count else {}


def work_folder(around: Launch) -> Path:
    """Where /tmp of a stage lies: on a disk of this machine, as Apptainer's own is of 64 MiB. Always the same place, so
    that nothing of a killed run is left."""
    place = sha256_text(str(around.folder.path))[:WORK_DIGITS]
    return Path(tempfile.gettempdir()) / f"essence-{around.user[0]}-{place}"


def held_work_folder(around: Launch) -> tuple[Path, int]:
    """The folder, and an open descriptor that keeps others who use it from removing it."""
    while True:
        folder = open_work_folder(around)
        with contextlib.suppress(FileNotFoundError):
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            with contextlib.suppress(OSError):
                # On a disk without such locks nobody can take it whole to remove it either.
                fcntl.flock(held, fcntl.LOCK_SH)
            if folder.exists() and os.path.samestat(folder.lstat(), os.fstat(held)):
                return folder, held
            # Its last user removed it in between.
            os.close(held)


def open_work_folder(around: Launch) -> Path:
    """The folder, this user's alone; MachineError where somebody else has made it."""
    folder = work_folder(around)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise MachineError(f"{folder}: belongs to somebody else", "name another folder for temporary files with TMPDIR")
    return folder
