"""A proof is of what runs on this machine, with what a pair and a model change for themselves."""

from dataclasses import replace
from pathlib import Path

import pytest

from essence.commands.prove import _on_fewer_gpus
from essence.errors import ExperimentError
from essence.plan.experiment import Experiment, load
from essence.plan.proof_plan import proof_plan
from essence.plan.schema import ModelSection, PairSection
from essence.plan.stage_plan import PlannedStage
from essence.record.run_directory import RunDirectory
from essence.settings.proving import ProveDecodingSettings, ProveTrainingSettings


def stages(loaded: Experiment, folder: Path) -> tuple[PlannedStage, PlannedStage]:
    plan = proof_plan(loaded, loaded.cells()[0], lambda _: {}, RunDirectory(folder), "2026-01-01T00:00:00")
    training, decoding = plan.stages.values()
    return training, decoding


def trained(stage: PlannedStage) -> ProveTrainingSettings:
    assert isinstance(stage.settings, ProveTrainingSettings)
    return stage.settings


def test_fewer_gpus_than_the_file_says_are_a_training_that_runs_on_them(tmp_path: Path) -> None:
    """One GPU: one process, alone; two: as many processes. A machine with more has what the file says."""
    found = [stages(_on_fewer_gpus(load("bespoke"), gpus), tmp_path)[0] for gpus in (1, 2, 8)]
    assert [stage.resources.gpus for stage in found] == [1, 2, 4]
    told = [(trained(stage).parallel, trained(stage).processes) for stage in found]
    assert told == [("single", 1), ("zero2", 2), ("zero2", 4)]
    tiny = load("tiny")
    assert _on_fewer_gpus(tiny, 8) is tiny


def test_a_proof_knows_the_machines_and_takes_what_a_pair_and_a_model_change(tmp_path: Path) -> None:
    loaded = load("bespoke")
    experiment = loaded.experiment
    cell = loaded.cells()[0]
    changes = {
        "training": experiment.training.model_copy(update={"processes": 8}),
        "resources": experiment.resources.model_copy(update={"nodes": 2}),
        "by_pair": {cell.pair: PairSection(micro_batch_tokens=12288)},
        "by_model": {cell.student: ModelSection(tensor_parallel=2)},
    }
    changed = replace(loaded, experiment=experiment.model_copy(update=changes))
    training, decoding = stages(changed, tmp_path)
    assert (trained(training).machines, trained(training).processes) == (2, 8)
    assert (training.resources.nodes, training.resources.micro_batch_tokens) == (1, 12288)
    assert (decoding.resources.gpus, decoding.resources.tensor_parallel) == (2, 2)


@pytest.mark.parametrize(("gpus", "least"), [(0, 10), (1, 34)])
def test_sequences_that_have_no_room_for_a_prompt_are_refused_with_the_least_that_have(
    gpus: int, least: int, tmp_path: Path
) -> None:
    """The file and its key are named, and what is named works."""

    def planned(tokens: int) -> PlannedStage:
        file = tmp_path / "short.toml"
        text = f"[evaluation]\nmax_new_tokens = 4\nmax_model_tokens = {tokens}\n[resources]\ngpus = {gpus}\n"
        file.write_text(f'extends = "tiny"\ntitle = "short"\n{text}', encoding="utf-8")
        return stages(load(str(file)), tmp_path)[1]

    said = rf"short\.toml: evaluation\.max_model_tokens = {least - 1} leaves no room .*; set it to {least} or more"
    with pytest.raises(ExperimentError, match=said):
        planned(least - 1)
    settings = planned(least).settings
    assert isinstance(settings, ProveDecodingSettings) and settings.contexts == [1]
