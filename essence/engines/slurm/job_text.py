"""The batch text of a stage: `job.sh` and `task.sh`, filled with what surrounds the stage, its spec and the site.

Pure functions. The batch shell starts the stage with srun, one task a node, and waits. Before the time limit Slurm
signals this shell; it asks the stage for a checkpoint, and queues the job again when the stage says that it stopped
with all it needs. What differs from job to job or node to node (addresses, ids, GPUs) is read when the job runs.
"""

import functools
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jinja2

from essence.engines.apptainer import apptainer_words, binds
from essence.engines.apptainer_stage import MACHINE_VARIABLE
from essence.engines.engine import Launch, limit_words
from essence.engines.inherited_variables import SECRET
from essence.engines.slurm.queue import OF_SLURM
from essence.engines.slurm.site import Site, StageLimits
from essence.errors import ExitCode, ExperimentError
from essence.record.facts import SCHEDULER_VARIABLES
from essence.settings import Spec

KEEPS_NOTHING = ("tokenize", "prove_training", "prove_decoding")
"""Stages that begin again when they were stopped. At their time limit they get no signal: queued again they would
never end, and a time-out is a cause that `invoke status` names."""
JOB_TIME = (*SCHEDULER_VARIABLES, "SLURM_NODEID", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT")
"""Variables that are handed into the container with the value they have on the node."""
SCRUB = f"unset $(compgen -e | grep -iE {shlex.quote(SECRET.pattern)})"
SCRUB_CLIENT = (
    f"unset $(compgen -e | grep -E '^(SBATCH|SLURM|SQUEUE|SACCT)_' | grep -vxE {shlex.quote('|'.join(OF_SLURM))})"
)
"""What `queue.client_environment` leaves out, for a text that is handed to a shell."""
SCRUB_APPTAINER = (
    f"unset $(compgen -e | grep -E '^(APPTAINER|SINGULARITY)' | grep -vxE {shlex.quote(MACHINE_VARIABLE.pattern)})"
)
"""What would bring folders and variables into a container, set by the caller or by a module."""
MIB_IN_GIB = 1024


@dataclass(frozen=True)
class Job:
    """One stage to be queued, and the stages whose jobs must have succeeded before."""

    surroundings: Launch
    spec: Spec
    image: str
    """What the site's container flavour runs."""
    after: tuple[str, ...]
    expected_s: float | None = None
    """How long it is expected to run; None = not known."""


def batch_text(job: Job, site: Site) -> str:
    """The text that sbatch is given, without dependencies, which are ids that only sbatch knows."""
    around = job.surroundings
    for path in (around.folder.path, *(mount.source for mount in around.mounts)):
        check_path(path)
    return _template("job.sh").render({**_job_values(job, site), **_task_values(job, site)})


def task_text(job: Job, site: Site) -> str:
    """The part of a batch text that runs on each node: the container around the stage, or within pyxis the stage."""
    return _template("task.sh").render(_task_values(job, site))


class JobValues(TypedDict):
    """What `job.sh` is filled with, beside the values of its task."""

    title: str
    stage_id: str
    folder: str
    log: str
    spec_file: str
    spec: str
    """The spec itself, as JSON."""
    limits: StageLimits
    time: str
    nodes: int
    gpus: int
    memory_mib: int
    limit_words: str
    keeps_progress: bool
    shared_folders: list[str]
    """What the stage writes to beside its own folder."""
    mounts: str
    scrub: str
    scrub_apptainer: str
    exit_stopped: int


class TaskValues(TypedDict):
    """What `task.sh` is filled with."""

    site: Site
    image: str
    apptainer: str
    """The command line of the container, one option a line."""
    names_on_node: list[str]
    """Variables that are read when the job runs."""
    variables: dict[str, str]
    command: str


def _job_values(job: Job, site: Site) -> JobValues:
    around, limits = job.surroundings, site.limits_of(job.surroundings.stage)
    resources = around.resources
    return {
        "title": around.title,
        "stage_id": around.stage_id,
        "folder": str(around.folder.path),
        "log": str(around.folder.log),
        "spec_file": str(around.folder.spec),
        "spec": json.dumps(job.spec.model_dump(mode="json"), ensure_ascii=True),
        "limits": limits,
        "time": limits.asked(job.expected_s, site.signal_s),
        "nodes": resources.nodes,
        "gpus": resources.gpus,
        "memory_mib": int(resources.memory_gib * MIB_IN_GIB) or limits.memory_gib * MIB_IN_GIB,
        "limit_words": slurm_limits(resources.ulimits),
        "keeps_progress": around.stage not in KEEPS_NOTHING,
        "shared_folders": [str(folder) for folder in around.written_folders if folder != around.folder.path],
        "mounts": ",".join(mount_words(around, site)),
        "scrub": SCRUB,
        "scrub_apptainer": SCRUB_APPTAINER,
        "exit_stopped": ExitCode.STOPPED,
    }


def _task_values(job: Job, site: Site) -> TaskValues:
    around = job.surroundings
    of_several = ("MASTER_ADDR", "MASTER_PORT", "SLURM_NODEID")
    written = around.contained_variables()
    apptainer = apptainer_words(
        around,
        mount_words(around, site),
        no_network=site.network_none and around.resources.nodes == 1,
        no_privileges=site.no_privileges,
    )
    return {
        "site": site,
        "image": job.image,
        "apptainer": wrapped(apptainer),
        "names_on_node": [name for name in JOB_TIME if around.resources.nodes > 1 or name not in of_several],
        "variables": {name: written[name] for name in written if name not in (*JOB_TIME, "ESSENCE_HOST")},
        "command": shlex.join(["python", *around.arguments]),
    }


def slurm_limits(ulimits: Mapping[Any, int]) -> str:
    """Limits of a stage as arguments of prlimit, which sets them for the job's shell and all that it starts."""
    return " ".join(limit_words(ulimits)[1:])


def mount_words(around: Launch, site: Site) -> list[str]:
    """`source:target:ro|rw` of each folder; those of the site as it writes them."""
    whole = [bind if bind.count(":/") or ":" not in bind else _twice(bind) for bind in site.binds]
    return binds(around.mounts) + [bind if ":" in bind else f"{bind}:{bind}" for bind in whole]


def _twice(bind: str) -> str:
    source, mode = bind.split(":")
    return f"{source}:{source}:{mode}"


def submit_text(jobs: list[tuple[Job, str]]) -> str:
    """A shell text that queues the jobs in order, each after those it needs, and leaves nothing running behind."""
    known = {job.surroundings.stage_id for job, _ in jobs}
    values = [
        {
            "stage_id": job.surroundings.stage_id,
            "folders": [str(folder) for folder in job.surroundings.written_folders],
            "variable": variable(job.surroundings.stage_id),
            "identifier": _identifier(job.surroundings.stage_id),
            "after": [_identifier(before) for before in job.after if before in known],
            "text": text.removesuffix("\n"),
        }
        for job, text in jobs
    ]
    return _template("submit.sh").render(jobs=values, scrub=SCRUB, scrub_client=SCRUB_CLIENT)


def variable(stage_id: str) -> str:
    """The shell variable that holds the id of a stage's job."""
    return "job_" + stage_id.replace("-", "_")


def _identifier(stage_id: str) -> str:
    """The id alone: behind it sbatch may name the cluster, after a semicolon."""
    return "${" + variable(stage_id) + "%%;*}"


def check_path(path: Path) -> None:
    """ExperimentError for a path that neither sbatch nor a container's list of folders can name."""
    if found := next((sign for sign in str(path) if sign in ":,|%\"'\\" or sign.isspace()), None):
        raise ExperimentError(
            f"{path}: holds {found!r}, which a batch text cannot name", "choose a run directory without it with --runs"
        )


def wrapped(words: list[str]) -> str:
    """A command line, each option on a line of its own."""
    line = shlex.quote(words[0])
    for word in words[1:]:
        line += (" \\\n  " if word.startswith("--") else " ") + shlex.quote(word)
    return line


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701  a shell text: values are quoted by the filter
        loader=jinja2.PackageLoader("essence.engines.slurm", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = shlex.quote
    return environment.get_template(name)
