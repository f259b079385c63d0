"""What surrounds a stage, computed once for every engine: a process, a container, an argv or a batch script.

Folders have the same path inside a container as outside, so that every message names a file that the reader can open.
"""

import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from essence.engines.gpu_pool import NO_GPUS, TakenGpus
from essence.engines.image_builds import to_be_made
from essence.engines.recipes import ImageRecipe
from essence.engines.requirement import Requirement, asked
from essence.evaluation.decoders.kept_compilations import KEPT
from essence.files import GIB
from essence.memory_limit import VARIABLE as MEMORY_LIMIT
from essence.paths import local_files
from essence.plan.stage_plan import PlannedStage
from essence.progress import visible_gpus
from essence.record.facts import SCHEDULER_VARIABLES
from essence.record.run_directory import RunDirectory, StageFolder
from essence.settings import DownloadSettings, EnvironmentName, Resources, Spec, StageName
from essence.settings.evaluation import SamplingSettings

if TYPE_CHECKING:
    from essence.engines.slurm.slurm_engine import SlurmEngine

NETWORK_VARIABLES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""What a download is told of the caller's environment."""
CERTIFICATES = "SSL_CERT_FILE"
DEVICE_ORDER = "PCI_BUS_ID"
"""By which a number means the same GPU to CUDA as to the driver's tools; by itself CUDA begins with the fastest."""
PRIVATE_TMP = Path("/tmp")  # noqa: S108  a tmpfs of the container's own


@dataclass(frozen=True)
class Mount:
    """A host folder or file as it is seen inside."""

    source: Path
    target: Path
    read_only: bool


@dataclass(frozen=True)
class Launch:
    """One stage and all that an engine needs to know to start it."""

    stage: StageName
    stage_id: str
    title: str
    environment: EnvironmentName
    folder: StageFolder
    mounts: tuple[Mount, ...]
    network: bool
    resources: Resources
    variables: dict[str, str]
    """What the kit tells the stage under every engine."""
    user: tuple[int, int]
    """uid and gid of the caller, who is to own the files."""
    inputs: tuple[str, ...] = ()
    """Ids of the stages that it reads."""
    gpus: tuple[str, ...] = ()
    """The GPUs that are this stage's alone, as CUDA_VISIBLE_DEVICES names them; empty = the first of the caller's."""
    held_open: tuple[int, ...] = ()
    """Descriptors that the stage's process inherits, and that hold its GPUs while it lives."""
    spec: Spec | None = None
    """What a batch text carries to the node; None = the spec is in the stage's folder."""

    @property
    def arguments(self) -> list[str]:
        """What follows `python`."""
        return ["-m", "essence.stages", self.stage, "--spec", str(self.folder.spec)]

    @property
    def written_folders(self) -> list[Path]:
        """The stage's own folder, and what it shares with others."""
        return [mount.source for mount in self.mounts if not mount.read_only]

    def make_folders(self) -> None:
        """Make the folders that the stage writes to: an engine of containers would make them root's."""
        for folder in self.written_folders:
            folder.mkdir(parents=True, exist_ok=True)

    def chosen_gpus(self) -> tuple[str, ...]:
        """Names of the GPUs that the stage gets; empty where it asks for none, or the caller's have no names."""
        return self.gpus or tuple(visible_gpus()[: self.resources.gpus])

    def contained_variables(self) -> dict[str, str]:
        """The whole environment of a stage that inherits nothing: an allow-list, no secrets."""
        inside = {
            # The caller's uid has no entry in the image's passwd: libraries that ask for a home or a name find these.
            "HOME": str(PRIVATE_TMP),
            "USER": "essence",
            "LOGNAME": "essence",
            "XDG_CACHE_HOME": str(PRIVATE_TMP / "cache"),
            "HF_HOME": str(PRIVATE_TMP / "huggingface"),
            "ESSENCE_HOST": socket.gethostname(),
        }
        passed = (*SCHEDULER_VARIABLES, *(NETWORK_VARIABLES if self.network else ()))
        inside.update({name: os.environ[name] for name in passed if name in os.environ})
        if self.resources.memory_gib:
            inside[MEMORY_LIMIT] = str(int(self.resources.memory_gib * GIB))
        if self.network and CERTIFICATES in os.environ:
            inside[CERTIFICATES] = os.environ[CERTIFICATES]
        return {**inside, **self.variables}


def surroundings(stage: PlannedStage, run_directory: RunDirectory, gpus: TakenGpus = NO_GPUS) -> Launch:
    """What surrounds a planned stage: its own folder to write to, its inputs to read, the network if it fetches."""
    folder = run_directory.stage(stage.id)
    network = stage.stage == "download" and fetches(stage)
    read = [run_directory.stage(identifier).path for identifier in stage.inputs.values()]
    read += [*_local_source(stage), *_certificates(network)]
    compiled = _compiled(stage, run_directory)
    return Launch(
        stage=stage.stage,
        stage_id=stage.id,
        title=stage.title,
        environment=stage.runs_in,
        folder=folder,
        mounts=(
            *(Mount(path, path, read_only=True) for path in dict.fromkeys(read)),
            *(Mount(path, path, read_only=False) for path in (folder.path, *compiled)),
        ),
        network=network,
        resources=stage.resources,
        variables=stage_environment(stage.resources, network) | _of_vllm(compiled) | gpus.variables(),
        user=(os.getuid(), os.getgid()),
        inputs=tuple(dict.fromkeys(stage.inputs.values())),
        gpus=gpus.names,
        held_open=gpus.descriptors,
    )


def _compiled(stage: PlannedStage, run_directory: RunDirectory) -> tuple[Path, ...]:
    """The folder in which vLLM keeps what it compiles; none of a stage that has no vLLM."""
    settings = stage.settings
    uses = isinstance(settings, SamplingSettings) and settings.decoder == "vllm"
    return (run_directory.compiled(stage.environment),) if uses else ()


def _of_vllm(compiled: tuple[Path, ...]) -> dict[str, str]:
    """Where vLLM and what it compiles with keep their work.

    vLLM compiles FlashInfer's sampler when it starts, and draws with its own where each request has a seed, as all of
    the kit's have: compiling it is left out.
    """
    return {
        name: value
        for folder in compiled
        for name, value in {
            KEPT: str(folder),
            "VLLM_CACHE_ROOT": str(folder / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "FLASHINFER_WORKSPACE_BASE": str(folder / "flashinfer"),
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
        }.items()
    }


def fetches(stage: PlannedStage) -> bool:
    """Whether a stage brings something in from a repository."""
    return isinstance(stage.settings, DownloadSettings) and bool(stage.settings.source.repository)


def stage_environment(resources: Resources, network: bool) -> dict[str, str]:
    """Variables that the kit sets for a stage: threads, and no hub but for downloads."""
    variables = {
        "OMP_NUM_THREADS": str(resources.threads),
        "MKL_NUM_THREADS": str(resources.threads),
        "TOKENIZERS_PARALLELISM": "true" if resources.threads > 1 else "false",
        "PYTHONUNBUFFERED": "1",
    }
    if not network:
        variables.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    return variables


def _local_source(stage: PlannedStage) -> list[Path]:
    """The local path that a download copies, and the folders that links in it lead to (a hub cache is made of them)."""
    if not isinstance(stage.settings, DownloadSettings) or not stage.settings.source.path:
        return []
    path = Path(stage.settings.source.path)
    linked = {file.resolve().parent for file in local_files(path) if file.resolve() != file}
    return [path, *sorted(folder for folder in linked if not folder.is_relative_to(path))]


def _certificates(network: bool) -> list[Path]:
    file = Path(os.environ.get(CERTIFICATES, ""))
    return [file] if network and file.is_absolute() and file.is_file() else []


Flavour = str
"""Which locked versions an image holds: cuda or cpu (`docker/bake.hcl`)."""


@dataclass(frozen=True)
class Exit:
    """How a stage's process ended."""

    code: int
    """Exit code; a negative one is the signal that ended it."""
    cause: str | None = None
    """One sentence when something outside the stage ended it, which the stage itself could not write down."""


class RunningStage(Protocol):
    """A stage that was started."""

    def poll(self) -> Exit | None:
        """None while it runs."""

    def stop(self) -> None:
        """Ask the stage to write what it needs and end."""

    def kill(self) -> None:
        """End the stage and all that it started at once; returns when it is gone."""


class Engine(ABC):
    """What starts stages: the only place that knows of processes, containers and jobs."""

    name: ClassVar[str]
    contained: ClassVar[bool] = True
    """True when stages run in images."""

    @property
    def queue(self) -> "SlurmEngine | None":
        """The engine itself when it queues stages as jobs, which go on after the command has ended; else None."""
        return None

    @abstractmethod
    def environment(self, name: EnvironmentName) -> dict[str, str]:
        """Identity of an environment, part of every key; known without the engine being there."""

    @abstractmethod
    def image(self, name: EnvironmentName) -> dict[str, str | None]:
        """What the manifest says of engine and image; group `image`."""

    @abstractmethod
    def check(self, stages: list[PlannedStage]) -> None:
        """KitError when these stages cannot be started here: no engine, no image."""

    @abstractmethod
    def render(self, surroundings: Launch) -> str:
        """The command as a person would type it; needs neither engine nor image."""

    @abstractmethod
    def start(self, surroundings: Launch) -> RunningStage:
        """Start a stage, or take over the one that a killed host left running."""

    def lacking(self, stages: list[PlannedStage]) -> list[ImageRecipe]:
        """Images of these stages that a run makes before it starts them; the engine is there."""
        del stages
        return []

    def check_making(self, stages: list[PlannedStage], images: list[ImageRecipe]) -> None:
        """KitError when these images cannot be made here, or would not be enough for these stages."""
        del stages, images

    def make(self, images: list[ImageRecipe], say: Callable[[str], None]) -> None:
        """Make these images; what makes them shows on standard error how far it is."""
        del images, say

    def gpus_in_use(self) -> dict[str, Path] | None:
        """GPU -> folder of the stage that has it and outlives this process: one in a container; None = not told now."""
        return {}

    def requirements(
        self, stages: list[PlannedStage], run_directory: RunDirectory, expected_s: Mapping[str, float]
    ) -> Iterator[Requirement]:
        """What `invoke doctor` lists: the engine, then what it needs for the stages.

        expected_s: stage id -> seconds that it is expected to run, where that is known.
        """
        del run_directory, expected_s
        engine = asked(f"engine {self.name}", lambda: self.check([]))
        yield engine
        if not engine.met:
            return
        if lacking := self.lacking(stages):
            yield asked("images", lambda: self.check_making(stages, lacking), to_be_made(lacking))
        else:
            names = ", ".join(sorted({stage.runs_in for stage in stages}))
            yield asked("environments", lambda: self.check(stages), f"{names} are there")


def limit_words(ulimits: Mapping[Any, int]) -> list[str]:
    """What is put before a command, so that it and all that it starts has these limits."""
    return ["prlimit", *(f"--{name}={'unlimited' if n < 0 else n}" for name, n in ulimits.items())] if ulimits else []


VMSTAT = Path("/proc/vmstat")


def memory_kills() -> int | None:
    """How many processes the kernel has killed so far because memory ran out; None where it does not count them."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def ended_by_signal(number: int, kills_before: int | None, limit_gib: float = 0.0) -> Exit:
    """The ending by a signal: because of memory where the kernel has killed for it since the stage began.

    `limit_gib` is what the stage was allowed to take, 0 = anything.
    """
    name, now = signal.Signals(number).name, memory_kills()
    if number != signal.SIGKILL:
        return Exit(-number, f"killed by {name}")
    if kills_before is None or now is None:
        return Exit(-number, f"killed by {name} (out of memory?)")
    return Exit(-number, out_of_memory(limit_gib) if now > kills_before else f"killed by {name}")


def out_of_memory(limit_gib: float) -> str:
    """The sentence for memory that ran out."""
    had = f"it may take {limit_gib:g} GiB (resources.memory_gib)" if limit_gib else "the machine has no more"
    return f"killed because memory ran out: {had}"
