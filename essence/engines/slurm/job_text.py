"""A stage as a Slurm job: a batch text, from what surrounds the stage, its spec and the site. Pure functions.

The batch shell starts the stage with srun, one task a node, and waits. Before the time limit Slurm signals this shell;
it asks the stage for a checkpoint, and queues the job again when the stage says that it stopped with all it needs. What
differs from job to job or node to node (addresses, ids, GPUs) is read when the job runs.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from essence.engines.apptainer import apptainer_words, binds
from essence.engines.engine import Launch
from essence.engines.inherited import SECRET
from essence.engines.slurm.site import Site
from essence.errors import ExperimentError
from essence.record.facts import SCHEDULER_VARIABLES
from essence.settings import Spec

EXIT_STOPPED = 75
KEEPS_NOTHING = ("tokenize",)
"""Stages that begin anew when they were stopped: queued again at their time limit they would never end."""
FIRST_PORT, PORTS = 20000, 20000
JOB_TIME = (*SCHEDULER_VARIABLES, "SLURM_NODEID", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT")
"""Variables that are handed into the container with the value they have on the node."""
SCRUB = f"unset $(compgen -e | grep -iE {shlex.quote(SECRET.pattern)})"

TASK = """\
# One task a node. Slurm's signals reach this shell alone: it asks the stage, which tells the processes that it started.
asked=
stage=
ask_to_stop() {{ asked=1; [ -z "$stage" ] || kill -TERM "$stage" 2>/dev/null; }}
trap ask_to_stop TERM USR1
{before}given=("ESSENCE_HOST=$(hostname)")
for name in {names}; do
  [ -z "${{!name-}}" ] || given+=("$name=${{!name}}")
done
{start} &
stage=$!
[ -z "$asked" ] || ask_to_stop
wait "$stage"
code=$?
# A signal ends the first wait early.
while kill -0 "$stage" 2>/dev/null; do wait "$stage"; code=$?; done
[ "$code" -le 128 ] || {{ wait "$stage"; code=$?; }}
{after}exit "$code"
"""
BATCH = """\
# No token of the caller's is for a stage without network.
{scrub}
{modules}cat > {spec_file} <<'ESSENCE_SPEC'
{spec}
ESSENCE_SPEC
{rendezvous}task=$(cat <<'ESSENCE_TASK'
{task}ESSENCE_TASK
)
near_limit=0
stage=
# srun passes USR1 on to its tasks; of SIGTERM Slurm tells them by itself.
trap 'near_limit=1; [ -z "$stage" ] || kill -USR1 "$stage" 2>/dev/null' USR1
trap : TERM
{srun} bash -c "$task" &
stage=$!
wait "$stage"
code=$?
while kill -0 "$stage" 2>/dev/null; do wait "$stage"; code=$?; done
[ "$code" -le 128 ] || {{ wait "$stage"; code=$?; }}
# Only what the time limit stopped is queued again: not what was cancelled.
if [ "$code" -eq {stopped} ] && [ "$near_limit" -eq 1 ]; then
  trap - TERM USR1
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
"""


@dataclass(frozen=True)
class Job:
    """One stage to be queued, and the stages whose jobs must have succeeded before."""

    surroundings: Launch
    spec: Spec
    image: str
    """What the site's container flavour is told to run."""
    after: tuple[str, ...]


def batch_text(job: Job, site: Site) -> str:
    """The text that sbatch is given, without dependencies, which are ids that only sbatch knows."""
    around = job.surroundings
    for path in (around.folder.path, *(mount.source for mount in around.mounts)):
        check_path(path)
    nodes = around.resources.nodes
    rendezvous = (
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        f"export MASTER_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))\n"
    )
    modules = shlex.join(["module", "load", *site.modules]) + "\n" if site.modules else ""
    return "\n".join(header(job, site)) + "\n\n" + BATCH.format(
        scrub=SCRUB,
        modules=modules,
        spec_file=shlex.quote(str(around.folder.spec)),
        spec=json.dumps(job.spec.model_dump(mode="json"), ensure_ascii=True),
        rendezvous=rendezvous if nodes > 1 else "",
        task=task_text(job, site),
        srun=wrapped(srun_words(job, site)),
        stopped=EXIT_STOPPED,
    )  # fmt: skip


def header(job: Job, site: Site) -> list[str]:
    """The lines that sbatch reads."""
    around, limits = job.surroundings, site.limits[job.surroundings.stage]
    resources = around.resources
    # A login shell: modules are a function of its profile.
    lines = ["#!/bin/bash -l", f"# {around.title}"]
    options = [f"--job-name={around.stage_id}", f"--chdir={around.folder.path}"]
    options += [f"--output={around.folder.log}", "--open-mode=append"]
    options += [
        f"--{name}={value}" for name, value in (("account", site.account), ("partition", site.partition)) if value
    ]
    options += [f"--nodes={resources.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={limits.cpus}"]
    options += [f"--mem={int(resources.memory_gib * 1024) or limits.memory_gib * 1024}M", f"--time={limits.time}"]
    if resources.gpus:
        options.append(":".join(["--gres=gpu", *([site.gpu_type] if site.gpu_type else []), str(resources.gpus)]))
    options += ["--requeue"]
    # What keeps nothing has all of its time, and ends as a time-out that status tells.
    options += [] if around.stage in KEEPS_NOTHING else [f"--signal=B:USR1@{site.signal_s}"]
    return [*lines, *(f"#SBATCH {option}" for option in options)]


def srun_words(job: Job, site: Site) -> list[str]:
    """srun with one task a node; with pyxis it starts the container too."""
    around = job.surroundings
    nodes, cpus = around.resources.nodes, site.limits[around.stage].cpus
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}"]
    # The first machine's task goes on after the others, to write the manifest.
    words += ["--kill-on-bad-exit=0", f"--wait={site.rest_wait_s}"]
    if site.container == "pyxis":
        words += [f"--container-image={job.image}", "--no-container-mount-home"]
        words += [
            f"--container-workdir={around.folder.path}",
            f"--container-mounts={','.join(mount_words(around, site))}",
        ]
    return words


def task_text(job: Job, site: Site) -> str:
    """What runs on each node: the container around the stage, or within pyxis the stage alone."""
    around = job.surroundings
    names = [name for name in JOB_TIME if around.resources.nodes > 1 or not name.startswith(("MASTER", "SLURM_NODEID"))]
    pairs = {
        name: value for name, value in around.contained_variables().items() if name not in (*JOB_TIME, "ESSENCE_HOST")
    }
    stage = ["env", *(f"{name}={value}" for name, value in pairs.items())]
    command = f'{wrapped(stage)} "${{given[@]}}" \\\n  {shlex.join(["python", *around.arguments])}'
    if site.container == "pyxis":
        return TASK.format(before="", names=" ".join(names), start=command, after="")
    before = f'work="{site.scratch}/essence-$SLURM_JOB_ID"\nmkdir -p "$work"\n'
    words = apptainer_words(
        around,
        mount_words(around, site),
        no_network=site.network_none and around.resources.nodes == 1,
        no_privileges=site.no_privileges,
    )
    start = f'{wrapped(words)} --workdir="$work" \\\n  '
    start += f"{shlex.quote(job.image)} {command}"
    return TASK.format(before=before, names=" ".join(names), start=start, after='rm -rf "$work"\n')


def mount_words(around: Launch, site: Site) -> list[str]:
    """`source:target:ro|rw` of each folder; those of the site as it writes them."""
    whole = [bind if bind.count(":/") or ":" not in bind else _twice(bind) for bind in site.binds]
    return binds(around.mounts) + [bind if ":" in bind else f"{bind}:{bind}" for bind in whole]


def _twice(bind: str) -> str:
    source, mode = bind.split(":")
    return f"{source}:{source}:{mode}"


def submit_text(jobs: list[tuple[Job, str]]) -> str:
    """A shell text that queues the jobs in order, each after those it needs, and leaves nothing running behind."""
    lines = ["#!/bin/bash", "set -euo pipefail", f"{SCRUB} || true"]
    known = {job.surroundings.stage_id for job, _ in jobs}
    for job, text in jobs:
        identifier = job.surroundings.stage_id
        needed = [variable(before) for before in job.after if before in known]
        words = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
        # After the id sbatch may name the cluster, behind a semicolon.
        words += ['--dependency="afterok:' + ":".join(f"${{{name}%%;*}}" for name in needed) + '"'] if needed else []
        lines += ["", f"mkdir -p {shlex.quote(str(job.surroundings.folder.path))}"]
        lines.append(f"{variable(identifier)}=$({' '.join(words)} <<'ESSENCE_JOB'\n{text}ESSENCE_JOB\n)")
        lines.append(f'echo "${{{variable(identifier)}%%;*}} {identifier}"')
    return "\n".join(lines) + "\n"


def variable(identifier: str) -> str:
    """The shell variable that holds the id of a stage's job."""
    return "job_" + identifier.replace("-", "_")


def check_path(path: Path) -> None:
    """ExperimentError for a path that cannot be told to sbatch and a container's list of folders."""
    if found := next((sign for sign in str(path) if sign in ":,|%\"'\\" or sign.isspace()), None):
        raise ExperimentError(
            f"{path}: holds {found!r}, which a batch text cannot name; choose a run directory without it with --runs"
        )


def wrapped(words: list[str]) -> str:
    """A command line, each option and each variable on a line of its own."""
    line = shlex.quote(words[0])
    for word in words[1:]:
        line += (" \\\n  " if word.startswith("--") or "=" in word else " ") + shlex.quote(word)
    return line
