"""A proof of the miniature's pair in settings that take a second, planned as the command plans it."""

import json
import os
from pathlib import Path

from essence.plan.experiment import load
from essence.plan.proof_plan import proof_plan
from essence.plan.stage_plan import Plan
from essence.progress import StageContext
from essence.record.run_directory import RunDirectory, StageFolder
from essence.settings import Spec, StageName
from essence.settings.proving import ProveDecodingSettings, ProveTrainingSettings

AnyProving = ProveTrainingSettings | ProveDecodingSettings


def planned(folder: Path) -> Plan:
    """The two stages for the miniature."""
    loaded = load("tiny")
    return proof_plan(loaded, loaded.cells()[0], lambda _: {}, RunDirectory(folder), "2026-01-01T00:00:00")


def asked(folder: Path) -> tuple[ProveTrainingSettings, ProveDecodingSettings]:
    """Settings of both stages, with little to time."""
    training, decoding = (stage.settings for stage in planned(folder).stages.values())
    assert isinstance(training, ProveTrainingSettings) and isinstance(decoding, ProveDecodingSettings)
    few = {"lengths": [16, 48], "steps": 1, "disk_mib": 1}
    loads = {"sequences": [1, 2], "contexts": [16, 32], "new_tokens": 4}
    return training.model_copy(update=few), decoding.model_copy(update=loads)


def staged(folder: Path, stage: StageName, settings: AnyProving, **inputs: Path) -> StageContext:
    """What a stage is given, in its folder: with the spec that its own processes read. Inputs are stages' folders."""
    from support.stage_inputs import context  # skips a test where PyTorch is not installed

    made = context(folder, **{name: StageFolder(path).output for name, path in inputs.items()})
    spec = Spec(
        stage=stage,
        key="0" * 64,
        title=stage,
        settings=settings.model_dump(mode="json"),
        inputs={name: os.path.relpath(path, folder) for name, path in inputs.items()},
        environment={},
        source_sha256="",
        resources=made.resources,
        code={},
        image={},
    )
    (folder / "spec.json").write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
    return made
