"""A job's text as a node runs it, with stand-ins for `module`, srun and the container: what reaches the container,
under which limits, and what nodes share."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from essence.engines.apptainer_stage import MACHINE_VARIABLE
from essence.engines.slurm.job_text import Job, batch_text, submit_text
from essence.engines.slurm.site import Site, load_site
from support.slurm_clients import PREFIXES, Clients, drawn
from support.slurm_job import job

PROFILE = """\
module() { export APPTAINER_BIND=/of/a/module APPTAINERENV_LD_PRELOAD=/x.so SINGULARITY_CONTAINALL=0; }
export PATH={bin}:$PATH
"""
SRUN = """\
#!/bin/bash
# As srun: the task on each node, with its number.
printf '%s\\n' "$@" > {folder}/srun
for node in {nodes}; do SLURM_NODEID=$node "${{@: -3}}" || code=$?; done
exit "${{code:-0}}"
"""
APPTAINER = """\
#!/bin/bash
env > {folder}/environment-$SLURM_NODEID
printf '%s\\n' "$@" > {folder}/words-$SLURM_NODEID
ulimit -Hn > {folder}/limit-$SLURM_NODEID
ls -d {folder}/scratch/* > {folder}/work-$SLURM_NODEID
"""


@dataclass
class Node:
    """Where a job's text runs."""

    folder: Path

    def run(self, one: Job, site: Site, variables: dict[str, str], nodes: str = "0") -> str:
        """What it prints; it ends well."""
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        for name, text in (("srun", SRUN), ("apptainer", APPTAINER)):
            (programs / name).write_text(text.format(folder=self.folder, nodes=nodes))
            (programs / name).chmod(0o755)
        (self.folder / ".bash_profile").write_text(PROFILE.replace("{bin}", str(programs)))
        one.surroundings.folder.path.mkdir(parents=True, exist_ok=True)
        own = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "SLURM_JOB_ID": "7"}
        own |= {"SLURM_JOB_NODELIST": "a", "SLURM_CPUS_PER_TASK": "8"}
        (self.folder / "job.sh").write_text(batch_text(one, site))
        line = ["bash", "-l", str(self.folder / "job.sh")]
        done = subprocess.run(line, env={**variables, **own}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def said(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def site_at(node: Node) -> Site:
    return load_site("generic").model_copy(update={"modules": ["apptainer"], "scratch": str(node.folder / "scratch")})


@pytest.mark.parametrize("seed", range(2))
def test_nothing_of_the_caller_or_of_a_module_reaches_the_container(node: Node, seed: int) -> None:
    one, site = job(node.folder / "stages", gpus=0), site_at(node)
    node.run(one, site, {})
    plain = node.said("words-0")
    caller = {name: value for name, value in drawn(seed).items() if not name.startswith("SLURM")}
    node.run(one, site, {**caller, "APPTAINER_BIND": "/etc", "HF_TOKEN": "planted"})
    assert node.said("words-0") == plain
    names = [line.split("=")[0] for line in node.said("environment-0")]
    told = [name for name in names if re.match("APPTAINER|SINGULARITY", name)]
    assert all(MACHINE_VARIABLE.fullmatch(name) for name in told) and "HF_TOKEN" not in names
    assert "--export=ALL" in node.said("srun")


def test_limits_of_a_stage_hold_in_its_job(node: Node) -> None:
    node.run(job(node.folder / "stages", gpus=0, ulimits={"nofile": 512}), site_at(node), {})
    assert node.said("limit-0") == ["512"] and "--propagate=ALL" in node.said("srun")


def test_nodes_that_share_a_disk_have_folders_of_their_own(node: Node) -> None:
    """The first to end removes its folder: the other's must still be there."""
    (node.folder / "bin").mkdir()
    (node.folder / "bin" / "scontrol").write_text("#!/bin/sh\necho a\n")
    (node.folder / "bin" / "scontrol").chmod(0o755)
    node.run(job(node.folder / "stages", gpus=0, nodes=2), site_at(node), {}, nodes="0 1")
    works = [node.said(f"work-{number}") for number in (0, 1)]
    assert works[0] != works[1] and all(len(found) == 1 for found in works)
    assert list((node.folder / "scratch").iterdir()) == []


def test_the_printed_text_queues_the_same_in_any_environment(tmp_path: Path) -> None:
    clients = Clients(tmp_path / "clients")
    clients.put("sbatch")
    one = job(tmp_path / "stages", gpus=0)
    text = submit_text([(one, batch_text(one, load_site("generic")))])
    own = {"PATH": f"{clients.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    for variables in ({}, drawn(3)):
        subprocess.run(["bash"], input=text, text=True, env={**variables, **own}, check=True, capture_output=True)
    (words, plain, queued), (again, seen, same) = clients.calls("sbatch")
    assert (words, queued) == (again, same)
    of_slurm = PREFIXES[:4]
    assert not [name for name in seen if name.startswith(of_slurm)] and "HF_TOKEN" not in plain
