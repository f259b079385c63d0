"""A proof of the miniature's pair in settings that take a second, planned as the command plans it."""

from pathlib import Path

from essence.plan.experiment import load
from essence.plan.proof_plan import proof_plan
from essence.plan.stage_plan import Plan
from essence.record.run_directory import RunDirectory
from essence.settings.proving import ProveDecodingSettings, ProveTrainingSettings


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
