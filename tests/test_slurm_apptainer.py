"""The small matrix as Slurm jobs in real SIFs, disturbed: the result of an undisturbed local run."""

import re
import time
from pathlib import Path

import pytest
from conftest import MICRO, PROJECT, invoke
from containers import Sifs, all_capabilities
from slurm_node import SlurmNode
from test_engines_agree import by_title, pins
from test_slurm_jobs import jobs_of, status, wait_for

from essence.atomic import read_json
from essence.engines import scheduler
from essence.engines.sif import read_sif


@pytest.fixture
def site(sifs: Sifs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The generic site file, for this one node."""
    text = (PROJECT / "experiments" / "sites" / "generic.toml").read_text()
    text = re.sub(r"memory_gib = \d+, cpus = \d+", "memory_gib = 2, cpus = 1", text)
    text = text.replace("network_none = false", "network_none = true")
    text = text.replace("no_privileges = false", f"no_privileges = {str(not all_capabilities()).lower()}")
    (tmp_path / "site.toml").write_text(text)
    # A login shell makes its own PATH; on a cluster a module would add to it.
    (tmp_path / ".bash_profile").write_text(f"export PATH={sifs.apptainer.program.parent}:$PATH\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "site.toml"


@pytest.mark.slurm
@pytest.mark.apptainer
@pytest.mark.slow
def test_jobs_in_sifs_cancelled_and_issued_again_give_the_local_result(
    slurm: SlurmNode, sifs: Sifs, site: Path, micro: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    words = ("run", "--experiment", str(MICRO), "--pins", str(pins(micro)), "--runs", str(runs))
    words += ("--engine", "slurm", "--site", str(site), "--json")
    first = jobs_of(invoke(*words))
    wait_for(lambda: list(runs.glob("stages/train-*/progress.json")), runs)
    time.sleep(1.0)
    scheduler.cancel(state.job for state in scheduler.queue() if str(runs) in state.folder and not state.ended)
    wait_for(lambda: all(state.ended for state in scheduler.queue()), runs)
    second = jobs_of(invoke(*words))
    assert int(second["grade"]["job"]) > int(first["grade"]["job"])
    wait_for(lambda: status(runs)["failed"] or not jobs_of(invoke(*words)), runs)
    assert not status(runs)["failed"]
    here, there = by_title(micro), by_title(runs)
    stages = [title for title in there if not title.startswith("download")]
    assert len(stages) == 1 + 2 * 3
    for title in stages:
        assert there[title] == here[title], title
    for file in runs.glob("stages/train-*/manifest.json"):
        image, sif = read_json(file)["image"], read_sif(sifs.file("train"))
        assert (image["engine"], image["sif_sha256"], image["digest"]) == ("apptainer", sif.sha256, sif.config_digest)
        assert slurm.variables and read_json(file)["hardware"]["scheduler"]["SLURM_JOB_ID"]
    assert invoke("verify", str(runs)).returncode == 0
