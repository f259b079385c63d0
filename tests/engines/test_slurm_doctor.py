"""What `invoke doctor --engine slurm` asks and counts, with stand-ins for Slurm's commands: the job as it would be."""

import os
import re
from pathlib import Path

import pytest

from essence.commands.options import select
from essence.commands.queue_jobs import planned_jobs
from essence.engines.readiness import checks
from essence.engines.requirement import Requirement
from essence.engines.selected_run import Options
from essence.plan.experiment import EXPERIMENTS
from support.slurm_clients import Clients

GENERIC = (EXPERIMENTS / "sites" / "generic.toml").read_text(encoding="utf-8")


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    found = Clients(tmp_path / "clients")
    found.put("sbatch")
    found.put("squeue", *["out "] * 9)
    monkeypatch.setenv("PATH", f"{found.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return found


def site_with(folder: Path, memory_gib: int) -> str:
    text = re.sub(r"memory_gib = \d+", f"memory_gib = {memory_gib}", GENERIC)
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return str(folder / "site.toml")


def options(folder: Path, memory_gib: int = 256) -> Options:
    runs, site = str(folder / "runs"), site_with(folder, memory_gib)
    return Options("bespoke", lsp=0.5, engine="slurm", site=site, runs=runs, protocol="released")


def found(words: Options) -> dict[str, Requirement]:
    return {check.name: check for check in checks(select(words, baselines=False), thorough=False)}


def test_slurm_is_asked_for_the_time_that_the_job_will_ask_for(clients: Clients, tmp_path: Path) -> None:
    words = options(tmp_path)
    selection = select(words, baselines=False)
    queued = {
        re.findall(r"--job-name=([a-z]+)", one)[0]: re.findall(r"--time=(\S+)", one)[0] for one in texts(selection)
    }
    found(words)
    asked = {}
    for line, _, text in clients.calls("sbatch"):
        assert "--test-only" in line
        asked[re.findall(r"--job-name=([a-z]+)", text)[0]] = re.findall(r"--time=(\S+)", text)[0]
    assert asked == queued and asked["train"] != asked["tokenize"]
    limit = re.findall(r"^train *= *\{.*time = \"([^\"]+)\"", GENERIC, re.MULTILINE)
    assert limit and asked["train"] != limit[0]


def texts(selection) -> list[str]:  # type: ignore[no-untyped-def]
    from essence.engines.slurm.job_text import batch_text

    engine = selection.engine.queue
    return [batch_text(job, engine.site) for job in planned_jobs(selection, engine)]


def test_the_main_memory_that_counts_is_that_of_the_jobs(clients: Clients, tmp_path: Path) -> None:
    del clients
    assert found(options(tmp_path))["memory of the stages"].met
    small = found(options(tmp_path, memory_gib=8))["memory of the stages"]
    assert not small.met and "of main memory, and of 8.0 GiB" in small.found
    assert small.cure.startswith("raise limits.train.memory_gib in the site file, or resources.memory_gib; or ")
    # Where jobs ask for none, what the experiment was planned for counts, and not this machine.
    assert found(options(tmp_path, memory_gib=0))["memory of the stages"].met
