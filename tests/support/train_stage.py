"""A train stage as a folder with a spec beside finished inputs, as an engine would start it."""

from pathlib import Path
from typing import Any

from essence.settings import Spec, TrainSettings
from support.finished_input import write_manifest
from support.stage_inputs import RESOURCES, inputs


def make_spec(settings: TrainSettings, **resources: Any) -> Spec:
    """With a checkpoint after every step."""
    return Spec(
        stage="train",
        key="0" * 64,
        title="train for a test",
        settings=settings.model_dump(mode="json"),
        inputs={name: f"../{name}" for name in ("tokens", "student", "teacher")},
        environment={},
        source_sha256="",
        resources=RESOURCES.model_copy(update={"threads": 1, "checkpoint_every_s": 0.0, **resources}),
        code={"version": "0", "commit": None, "dirty": False, "diff_sha256": None},
        image={"engine": "local", **dict.fromkeys(("engine_version", "digest", "base_digest", "sif_sha256"))},
    )


def make_stage(stages: Path, prepared: dict[str, Path], spec: Spec, **changes: Path) -> Path:
    """A folder with a spec, beside finished inputs."""
    for name, output in inputs(prepared, **changes).items():
        (stages / name).mkdir(parents=True)
        (stages / name / "output").symlink_to(output)
        write_manifest(stages / name)
    folder = stages / "train"
    folder.mkdir()
    (folder / "spec.json").write_text(spec.model_dump_json())
    return folder
