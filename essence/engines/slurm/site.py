"""A cluster as its site file says: `experiments/sites/<name>.toml`. It changes no result."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from essence.engines.recipes import ImageRecipe
from essence.engines.sif_files import sif_folder
from essence.errors import ExperimentError, nearest
from essence.paths import typed_path
from essence.plan.experiment import EXPERIMENTS
from essence.settings import EnvironmentName, Few, Record, StageName
from essence.settings.toml import read_toml, shown, validate

SITES = EXPERIMENTS / "sites"
TIME = re.compile(r"(\d{1,4}-)?\d{1,2}:\d{2}:\d{2}")
WORD = re.compile(r"[A-Za-z0-9(\[][A-Za-z0-9_.:+/@,&|*()\[\]!=-]*")
SUFFIX = re.compile(r"[A-Za-z0-9.-]*")
OPTION = re.compile(r"--[a-z][a-z0-9-]*(=[A-Za-z0-9_.:+/@,&|*()\[\]!=%-]+)?")
SET_BY_THE_KIT = {
    f"--{name}"
    for name in (
        *("account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "error", "exclusive"),
        *("export", "gres", "input", "job-name", "kill-on-invalid-dep", "mem", "nodes", "ntasks", "ntasks-per-node"),
        *("open-mode", "output", "parsable", "partition", "qos", "requeue", "no-requeue", "reservation", "signal"),
        *("time", "wait", "wrap", "test-only"),
    )
}
"""Options of a job that other keys, or the way in which a stage is followed, already decide."""
SCRATCH = re.compile(r"[A-Za-z0-9_./${}:-]+")
FLAVOUR = "{flavour}"
MARGIN, LEAST_ASKED_S, ROUNDED_S = 2.0, 3 * 3600, 600
"""A job that asks for less waits less in the queue, and one that asked for too little goes on in a second one."""
LIKE: dict[StageName, StageName] = {"prove_training": "train", "prove_decoding": "generate"}
"""Stages whose limits a site file need not have -> those that have them instead."""
BIND = re.compile(r"/[^:,\s]*(:/[^:,\s]*)?(:(ro|rw))?")


class StageLimits(Record):
    """What a job of one kind of stage asks for."""

    time: str
    """`[days-]hours:minutes:seconds`, the most that a job asks for. A training that needs longer writes a checkpoint
    and queues again."""
    memory_gib: Annotated[int, Field(ge=0, le=1_000_000)]
    """Main memory of each node, where the experiment names none (`resources.memory_gib = 0`); 0 here too = the job asks
    for none, on clusters that give it by cores or whole nodes."""
    cpus: Few
    """Cores of each node."""

    @field_validator("time")
    @classmethod
    def known_time(cls, time: str) -> str:
        if not TIME.fullmatch(time):
            raise ValueError("must be written [days-]hours:minutes:seconds, as in 12:00:00")
        return time

    @property
    def seconds(self) -> int:
        days, _, clock = self.time.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    def asked(self, expected_s: float | None, signal_s: int) -> str:
        """The time that a job asks for: twice what is expected, at least three hours, and what comes after the signal;
        without an estimate, the most."""
        wanted = max(MARGIN * expected_s, LEAST_ASKED_S) + signal_s if expected_s is not None else self.seconds
        if wanted >= self.seconds:
            return self.time
        minutes = math.ceil(wanted / ROUNDED_S) * ROUNDED_S // 60
        return self.time if minutes * 60 >= self.seconds else f"{minutes // 60:02d}:{minutes % 60:02d}:00"


class Site(Record):
    """One cluster."""

    title: str
    account: str
    """Empty = the user's default account."""
    partition: str
    """Empty = the cluster's default partition."""
    qos: str = ""
    constraint: str = ""
    """Features of nodes, as in `h100&nvlink`."""
    reservation: str = ""
    exclusive: bool = False
    """Whole nodes."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, a word each, as in `--licenses=scratch`; what the kit sets itself is refused."""
    address_suffix: str = ""
    """Behind the name of the node where ranks meet, as in `-ib0` or `.cluster.local`."""
    gpu_type: str
    """As in `--gres=gpu:TYPE:N`; empty = any."""
    modules: list[str]
    """Loaded before the container starts."""
    container: Literal["apptainer", "pyxis"]
    images: dict[EnvironmentName, str]
    """Files with a path (from the SIF folder where it is relative), or, with pyxis, also names that enroot knows.
    `{flavour}` in them is cuda or cpu."""
    sif_folder: str
    """Absolute. Empty = `sif/` of the project or the folder that ESSENCE_SIF_FOLDER names, with pyxis none."""
    binds: list[str]
    """Further folders inside, `source[:target][:ro|rw]`."""
    scratch: str
    """Folder on the node for temporary files; variables in it are read when the job runs. Used with apptainer."""
    network_none: bool
    """Take the network from stages on one node; not every Apptainer lets users do so. Used with apptainer."""
    no_privileges: bool
    """`--no-privs`, for a root user without all of root's capabilities. Used with apptainer."""
    signal_s: Annotated[int, Field(ge=30, le=86_400)]
    """How long before the time limit a stage is asked to write a checkpoint."""
    rest_wait_s: Annotated[int, Field(gt=0, le=86_400)]
    """How long the other nodes may go on once the process on one has ended."""
    limits: dict[StageName, StageLimits]

    @field_validator("account", "partition", "gpu_type", "qos", "constraint", "reservation")
    @classmethod
    def one_word(cls, text: str) -> str:
        if text and not WORD.fullmatch(text):
            raise ValueError("must be one word of letters, digits and _ . : + / @ , & | * ( ) [ ] ! = -")
        return text

    @field_validator("address_suffix")
    @classmethod
    def part_of_a_name(cls, text: str) -> str:
        if not SUFFIX.fullmatch(text):
            raise ValueError("must be letters, digits, . and -, as in -ib0 or .cluster.local")
        return text

    @field_validator("options")
    @classmethod
    def known_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not OPTION.fullmatch(option):
                raise ValueError(f"'{option}' must be one word that begins with --, as in --licenses=scratch")
            if (name := option.split("=")[0]) in SET_BY_THE_KIT:
                raise ValueError(f"'{name}' is set by the kit itself, from the other keys and the experiment")
        return options

    @field_validator("scratch")
    @classmethod
    def plain_path(cls, text: str) -> str:
        if not SCRATCH.fullmatch(text):
            raise ValueError("must be a path of letters, digits, _ . / - and variables as in ${SLURM_TMPDIR:-/tmp}")
        return text

    @field_validator("sif_folder")
    @classmethod
    def whole_path(cls, text: str) -> str:
        if text and not text.startswith("/"):
            raise ValueError("must be an absolute path, or empty")
        return text

    @field_validator("binds")
    @classmethod
    def absolute(cls, binds: list[str]) -> list[str]:
        for bind in binds:
            if not BIND.fullmatch(bind):
                raise ValueError(f"'{bind}' must be written /source[:/target][:ro|rw], without spaces or commas")
        return binds

    @field_validator("images", "limits")
    @classmethod
    def complete(cls, table: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        wanted = get_args(EnvironmentName if info.field_name == "images" else StageName)
        if lacking := [name for name in wanted if name not in table and name not in LIKE]:
            raise ValueError(f"{', '.join(lacking)} must be there too")
        return table

    @field_validator("limits")
    @classmethod
    def time_for_a_checkpoint(
        cls, limits: dict[StageName, StageLimits], info: ValidationInfo
    ) -> dict[StageName, StageLimits]:
        for name, stage in limits.items():
            if stage.seconds <= (signal_s := info.data.get("signal_s", 0)):
                raise ValueError(f"{name}.time = '{stage.time}' must be longer than signal_s = {signal_s} seconds")
        return limits

    @field_validator("images")
    @classmethod
    def known_placeholder(cls, images: dict[EnvironmentName, str]) -> dict[EnvironmentName, str]:
        for name, image in images.items():
            if set("{}") & set(image.replace(FLAVOUR, "")):
                raise ValueError(f"{name} = '{image}' may hold {FLAVOUR} and no other braces")
        return images

    def limits_of(self, stage: StageName) -> StageLimits:
        """Of a kind of stage; where the file has none of a proof, of the stages that it measures."""
        return self.limits[stage] if stage in self.limits else self.limits[LIKE[stage]]

    def image(self, recipe: ImageRecipe) -> str:
        """What the container flavour is told to run; a file of the SIF folder where there is one."""
        image = self.images[recipe.environment].replace(FLAVOUR, recipe.flavour)
        folder = Path(self.sif_folder) if self.sif_folder else sif_folder() if self.container == "apptainer" else None
        return str(folder / image) if folder else image

    def image_file(self, recipe: ImageRecipe) -> Path | None:
        """The file of an image; None for one that only enroot knows, by name."""
        image = self.image(recipe)
        return Path(image) if self.container == "apptainer" or image.startswith("/") else None


def load_site(name: str, typed: Mapping[str, str] | None = None) -> Site:
    """A site by its name in `experiments/sites/`, or by the path of a file; ExperimentError for a mistake in it.

    typed: key -> what was typed as an option, which replaces the value of the file.
    """
    known = sorted(path.stem for path in SITES.glob("*.toml"))
    if name in known:
        file = SITES / f"{name}.toml"
    elif not name.endswith(".toml"):
        raise ExperimentError(
            f"--site {shown(name)}: unknown site{nearest(name, known)} (known: {', '.join(known)}, or a path)"
        )
    else:
        file = typed_path("--site", name)
    tables, options = read_toml(file), _options(typed or {})
    return validate(Site, {**tables, **options}, str(file), [(str(file), tables), ("the command line", options)])


def _options(typed: Mapping[str, str]) -> dict[str, str]:
    """Options as a site file would say them; a folder is meant from where the command was typed."""
    folder = {"sif_folder": str(typed_path("--sif-folder", typed["sif_folder"]))} if "sif_folder" in typed else {}
    return {**typed, **folder}
