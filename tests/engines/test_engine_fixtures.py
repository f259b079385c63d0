"""The engines that the tests run on: they are there, and they do what the tests rely on."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from support.containers import START_TIMEOUT_S, Apptainer, DockerHost, lacking, need
from support.slurm_node import TWO_NODES, SlurmNode, started_node, steps_of


@pytest.mark.docker
def test_the_docker_engine_runs_a_container_from_the_substitute_base(docker_host: DockerHost, base_image: str) -> None:
    said = docker_host.client.containers.run(
        base_image, ["python3", "-c", "print(6 * 7)"], remove=True, network_mode="none"
    )
    assert said == b"42\n"


@pytest.mark.apptainer
def test_apptainer_makes_and_runs_an_image(apptainer: Apptainer, tmp_path: Path) -> None:
    from support.debian_tools import base_rootfs

    definition = tmp_path / "base.def"
    setup = f'mkdir -p "$APPTAINER_ROOTFS"\n    tar -C "$APPTAINER_ROOTFS" -xf {base_rootfs()}'
    definition.write_text(f"Bootstrap: scratch\n\n%setup\n    {setup}\n", encoding="utf-8")
    image = tmp_path / "base.sif"
    built = subprocess.run([apptainer.program, "build", image, definition], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    command = [apptainer.program, "exec", "--containall", "--no-home", image, "python3", "-c", "print(6 * 7)"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "42\n"


@pytest.mark.slurm
def test_slurm_runs_a_job_and_hands_out_a_gpu(slurm: SlurmNode, tmp_path: Path) -> None:
    output = tmp_path / "job.txt"
    command = ["sbatch", "--wait", "--gres=gpu:1", f"--output={output}", "--wrap", 'echo "gpu=$CUDA_VISIBLE_DEVICES"']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert output.read_text() == "gpu=0\n"


@pytest.mark.slurm
def test_no_step_of_a_job_outlives_its_slurm(tmp_path: Path) -> None:
    """One that runs, one that heeds no signal, one that waits: steps are no children of the daemons."""
    need("slurm", lacking("slurmctld", "slurmd", "sbatch"))
    deaf = "trap '' TERM; while true; do sleep 0.2; done"
    with started_node(TWO_NODES) as node:
        environment = {**os.environ, **node.variables}
        jobs = set()
        for more in (["--wrap=sleep 600"], [f"--wrap={deaf}"], ["--wrap=sleep 600", "--begin=now+1hour"]):
            command = ["sbatch", "--parsable", "--output=/dev/null", *more]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=True)
            jobs.add(done.stdout.strip())
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(steps_of(jobs)) < 2:
            assert time.monotonic() < deadline, "no job started"
            time.sleep(0.1)
    assert steps_of(jobs) == []
