"""A stage that will be submitted, as the engine makes it from a plan."""

from pathlib import Path
from typing import Any

from essence.engines.engine import Launch, Mount, stage_environment
from essence.engines.slurm.job_text import Job
from essence.record.run_directory import StageFolder
from essence.settings import Spec
from support.some_resources import some_resources

STAGES = Path("/scratch/essence/runs/stages")


def job(stages: Path = STAGES, stage: Any = "train", after: tuple[str, ...] = (), **resources: Any) -> Job:
    """One stage with one input."""
    folder, read = stages / f"{stage}-0123456789abcdef", stages / "tokenize-fedcba9876543210"
    asked = some_resources(**{"threads": 8, "gpus": 4, "gpu_memory_gib": 80.0, **resources})
    spec = Spec(
        stage=stage,
        key="0123456789abcdef",
        title="train it's one cell",
        settings={},
        inputs={"tokens": "../tokenize-fedcba9876543210"},
        environment={"lock_sha256": "00"},
        source_sha256="",
        resources=asked,
        code={"version": "0"},
        image={"engine": "apptainer"},
    )
    around = Launch(
        stage=stage,
        stage_id=folder.name,
        title=spec.title,
        environment="train",
        folder=StageFolder(folder),
        mounts=(Mount(read, read, True), Mount(folder, folder, False)),
        network=False,
        resources=asked,
        variables=stage_environment(asked, network=False),
        user=(1000, 1000),
    )
    return Job(around, spec, "/opt/essence/sif/train-cuda.sif", after)
