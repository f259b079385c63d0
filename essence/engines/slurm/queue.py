"""Slurm, asked through its own commands: what is in the queue, what became of a job, queue one, cancel some.

No accounting is needed: `squeue` knows a job until some minutes after its end (MinJobAge), `sacct` afterwards where
there is a database, `sacct --completion` where there is a list of ended jobs. Sources: squeue(1), sacct(1), sbatch(1).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from essence.errors import SchedulerError, SilentSchedulerError, shortened

TIMEOUT_S = 120.0
NEVER = "DependencyNeverSatisfied"
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
"""States of a job that will not change any more."""
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
"""States of a job that does not run yet, or not again yet."""
QUEUE = ("JobID", "State", "Reason", "RestartCnt", "exit_code", "NodeList", "Dependency", "WorkDir")
ACCOUNTS = ("JobIDRaw", "State", "ExitCode", "NodeList")
OF_THE_LOGIN = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "KRB5CCNAME")
OF_SLURM = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
"""Which cluster is asked, and as whom."""
JOB = re.compile(r"\d+(_\d+|_\[[^]]*\]|\+\d+)?")
NO_MORE = re.compile(r"submit job|submit limit|MaxSubmit|temporarily unable|limit on number of jobs", re.IGNORECASE)
"""In the refusal of a job that could be queued once others have ended."""
NAMED_LIMIT = re.compile(r"\b(?:Assoc|QOS)[A-Z]\w*")
"""Slurm's name of a limit; the sentence that follows it speaks of all of them."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of one job."""

    job: str
    state: str
    reason: str = ""
    restarts: int = 0
    """How often it was queued again."""
    code: int = 0
    """Exit code of the batch shell."""
    signal: int = 0
    """What ended it, 0 = none."""
    nodes: str = ""
    dependency: str = ""
    """What it still waits for: `afterok:12(unfulfilled)`."""
    folder: str = ""
    """Working directory: that of the stage."""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


def queue() -> list[JobState]:
    """The caller's jobs, with those that ended a short while ago; SchedulerError when no Slurm answers."""
    fields = ",".join(f"{name}:|" for name in QUEUE[:-1]) + f",{QUEUE[-1]}:|"
    lines = _ask("squeue", "--me", "--noheader", "--states=all", f"--Format={fields}")
    return [state for line in lines if (state := _queued(line))]


def _queued(line: str) -> JobState | None:
    """None for a line that is no job: a site's own wrapper may print others."""
    parts = line.split("|")
    if len(parts) < len(QUEUE) or not JOB.fullmatch(parts[0]) or not parts[1]:
        return None
    job, state, reason, restarts, status, nodes, dependency, folder = parts[: len(QUEUE)]
    number = int(status) if status.isdigit() else 0
    return JobState(
        job=job,
        state=state,
        reason="" if reason == "None" else reason,
        restarts=int(restarts) if restarts.isdigit() else 0,
        # A wait status, as waitpid(2) gives it.
        code=number >> 8 & 0xFF,
        signal=number & 0x7F,
        nodes=nodes,
        dependency="" if dependency == "(null)" else dependency,
        folder=folder,
    )


def ended(jobs: Iterable[str]) -> dict[str, JobState]:
    """Job id -> state, of jobs that the queue has forgotten; without those that no record of Slurm's tells of."""
    asked = ",".join(jobs)
    if not asked:
        return {}
    words = ("--noheader", "--parsable2", f"--jobs={asked}")
    try:
        lines = _ask("sacct", *words, "--allocations", f"--format={','.join(ACCOUNTS)}")
        found = list(filter(None, map(_accounted, lines)))
    except SchedulerError:
        try:
            # Of the list it can tell these two alone.
            lines = _ask("sacct", *words, "--completion", "--format=JobID,State")
            found = list(filter(None, map(_completed, lines)))
        except SchedulerError:
            return {}
    return {state.job: state for state in found if state.ended}


def _accounted(line: str) -> JobState | None:
    """None for a line that tells of no job's end."""
    parts = line.split("|")
    if len(parts) < len(ACCOUNTS) or not JOB.fullmatch(parts[0]) or not parts[1].strip():
        return None
    job, state, code, nodes = parts[: len(ACCOUNTS)]
    numbers = re.fullmatch(r"(\d*):?(\d*)", code)
    number, signal = numbers.groups() if numbers else ("", "")
    # `CANCELLED by 1000`
    return JobState(job, state.split()[0], code=int(number or 0), signal=int(signal or 0), nodes=nodes)


def _completed(line: str) -> JobState | None:
    parts = line.split("|")
    return JobState(parts[0], parts[1].split()[0]) if JOB.fullmatch(parts[0]) and "".join(parts[1:2]).strip() else None


def submit(text: str, after_ok: Iterable[str] = (), after_any: Iterable[str] = ()) -> str:
    """Queue a batch text behind other jobs and return its id; SchedulerError with Slurm's own words."""
    kinds = (("afterok", after_ok), ("afterany", after_any))
    needed = [":".join([kind, *jobs]) for kind, ids in kinds if (jobs := list(ids))]
    # What a site sets as SBATCH_EXPORT is not seen; said, so that its slurm.conf changes nothing either.
    words = ["--parsable", "--export=ALL", "--kill-on-invalid-dep=yes"]
    words += [f"--dependency={','.join(needed)}"] if needed else []
    # After the id sbatch may name the cluster, behind a semicolon; before it a site's wrapper may print lines.
    lines = _ask("sbatch", *words, text=text)
    found = [job for line in lines if JOB.fullmatch(job := line.strip().split(";")[0])]
    if not found:
        said = shortened(" ".join(lines)) if lines else "nothing"
        raise SilentSchedulerError(f"sbatch: names no job (its answer: {said})", "look with squeue --me")
    return found[-1]


def takes_no_more(words: str) -> bool:
    """Whether a refusal is about the number of jobs, and not about this one."""
    return bool(NO_MORE.search(words)) and all("Submit" in name for name in NAMED_LIMIT.findall(words))


def accepts(text: str) -> None:
    """SchedulerError with Slurm's own words unless it would take a batch text as it is; nothing is queued."""
    _ask("sbatch", "--test-only", "--export=ALL", text=text)


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; of one that has ended meanwhile Slurm says nothing that matters."""
    if ids := list(jobs):
        _ask("scancel", "--quiet", *ids)


def partitions() -> list[str]:
    """Names of the partitions that the caller can see; none where Slurm does not say."""
    try:
        return sorted({line.strip() for line in _ask("sinfo", "--noheader", "--format=%R")})
    except SchedulerError:
        return []


def ran_out_of_memory(job: str, log: Path) -> bool:
    """Whether a job's log tells of an out-of-memory kill: of a step that has one, Slurm calls the job FAILED."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - (1 << 16)))
            text = file.read().decode(errors="replace")
    except OSError:
        return False
    return bool(re.search(rf"oom.kill.{{0,40}}(StepId=|step ){re.escape(job)}\b", text, re.IGNORECASE))


def client_environment() -> dict[str, str]:
    """What Slurm's commands see of the caller's environment, and a job after them: an allow-list.

    SBATCH_*, SQUEUE_* and SACCT_* would change what is queued or answered; within an allocation so would SLURM_*.
    """
    return {name: os.environ[name] for name in (*OF_THE_LOGIN, *OF_SLURM) if name in os.environ}


def _ask(program: str, *words: str, text: str | None = None) -> list[str]:
    """The lines that a command of Slurm's answers, with nothing of the caller's environment but an allow-list."""
    if not shutil.which(program):
        raise SchedulerError(
            f"{program} is not on PATH: this machine is no login node of a Slurm cluster, or Slurm's module is not "
            "loaded",
            "issue the command there, or print the jobs with --dry-run",
        )
    try:
        done = subprocess.run(
            [program, *words],
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            # A folder of somebody else's job may have a name in another encoding.
            errors="replace",
            encoding="utf-8",
            env=client_environment(),
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"{program}: Slurm has not answered for {TIMEOUT_S:.0f} s"
        raise SilentSchedulerError(said, "issue the command again later") from None
    if done.returncode:
        raise _refused(program, done.stderr)
    return [line for line in done.stdout.splitlines() if line.strip()]


def _refused(program: str, errors: str) -> SchedulerError:
    """Slurm's own words on one line; its commands repeat in the last line what the first says in detail."""
    lines = [re.sub(rf"^{program}: (error: )?", "", line).strip() for line in errors.splitlines() if line.strip()]
    words = "; ".join(dict.fromkeys(lines)) or "no reason given"
    silent = (
        r"unable to contact|connection (refused|reset|timed)|connect failure|configuration source|timed out"
        r"|zero bytes were transmitted|communication|try again|slurm_receive_msg|unexpected message"
    )
    # Before Slurm's own sentence a site's plugin may say anything, as in "fix this and try again".
    own = re.split(r"submission failed: |allocation failure: ", words)[-1]
    if re.search(silent, own, re.IGNORECASE) and not takes_no_more(words):
        return SilentSchedulerError(
            f"{program}: no Slurm answers ({words.replace('; ', ', ')})",
            "try again later, or ask the cluster's support",
        )
    return SchedulerError(f"{program}: {words}")
