"""The two stages of `invoke prove`, from what an experiment trains and evaluates.

Sizes are those of the experiment's first cell; of models whose sizes are not known before they are made, small ones.
"""

from dataclasses import asdict, dataclass
from typing import Any

from essence.errors import ExperimentError
from essence.plan.cells import part, resources_of, train_settings
from essence.plan.experiment import Cell, Experiment
from essence.plan.model_sizes import architecture
from essence.plan.stage_plan import Environment, Plan, PlannedStage, environment_of
from essence.record.run_directory import RunDirectory, stage_id
from essence.record.source_key import source_sha256
from essence.record.stage_key import stage_key
from essence.settings import (
    LoopSettings,
    ParallelSettings,
    Record,
    Resources,
    SamplingSettings,
    StageName,
    TrainSettings,
)
from essence.settings.proving import ModelSizes, ProveDecodingSettings, ProveTrainingSettings
from essence.sizes.architecture import Architecture

SMALL = Architecture(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=192, vocabulary=512, tied=True)
ROW_TOKENS = (256, 1250, 2500, 4096)
"""That are timed where the longest row has as many as the paper's; in proportion where it has others."""
LEAST_TOKENS = 16


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    most_layers: int
    steps: int
    disk_mib: int
    link_mib: int
    sequences: tuple[int, ...]
    contexts: tuple[int, ...]
    new_tokens: int


ON_GPUS = Extent(12, 7, 2048, 1024, (16, 64, 256), (1024, 8192, 24_576), 33)
"""Ten minutes, starting the decoder three times included."""
ON_PROCESSORS = Extent(2, 3, 8, 2, (1, 4), (16, 64), 9)
"""One to three minutes, most of which libraries take to start."""


def proof_plan(
    loaded: Experiment, cell: Cell, environment: Environment, run_directory: RunDirectory, taken: str
) -> Plan:
    """The stages that prove a machine for an experiment; a stage of the same moment has the same key.

    Raises:
        ExperimentError: the cell is not taught, so there is no pair to measure; or sequences are too short to be timed.
    """
    training = train_settings(cell, loaded.experiment)
    resources = resources_of("train", loaded.experiment, cell)
    if training.objective.kd_weight == 0.0:
        raise ExperimentError(f"{loaded.name}: kd_weight = 0.0 trains without a teacher, and a proof measures a pair")
    extent = ON_GPUS if resources.gpus else ON_PROCESSORS
    one = resources.model_copy(update={"nodes": 1})
    settings = _training(loaded, cell, training, run_directory, extent, taken)
    prove = _stage("prove_training", f"prove trainings of {cell.pair}", settings, {}, {}, one, environment)
    copy = resources_of("generate", loaded.experiment, cell.student)
    copy = copy.model_copy(update={"gpus": min(copy.gpus, copy.tensor_parallel)})
    asked = _decoding(loaded, extent, taken)
    title = f"prove evaluations of {cell.student}"
    decode = _stage("prove_decoding", title, asked, {"training": prove.id}, {"training": prove.key}, copy, environment)
    return Plan(loaded, [], [], {prove.id: prove, decode.id: decode})


def _stage(
    stage: StageName,
    title: str,
    settings: Record,
    inputs: dict[str, str],
    keys: dict[str, str],
    resources: Resources,
    environment: Environment,
) -> PlannedStage:
    runs_in = environment_of(stage, settings)
    identity, source = environment(runs_in), source_sha256(stage)
    key = stage_key(stage, settings.model_dump(mode="json"), keys, identity, source)
    return PlannedStage(stage_id(stage, key), stage, key, title, settings, inputs, resources, runs_in, identity, source)


def _training(
    loaded: Experiment,
    cell: Cell,
    training: TrainSettings,
    run_directory: RunDirectory,
    extent: Extent,
    taken: str,
) -> ProveTrainingSettings:
    sizes = {name: architecture(name, None, loaded, run_directory) for name in (cell.student, cell.teacher)}
    known: dict[str, Architecture] = {name: found for name, found in sizes.items() if found}
    if len(known) < len(sizes):
        known = dict.fromkeys(sizes, SMALL)
    longest = training.rows.max_row_tokens
    scaled = (round(longest * tokens / max(ROW_TOKENS)) for tokens in ROW_TOKENS)
    lengths = sorted({min(longest, max(LEAST_TOKENS, tokens)) for tokens in scaled})
    return ProveTrainingSettings(
        taken=taken,
        student_sizes=ModelSizes(**asdict(known[cell.student])),
        teacher_sizes=ModelSizes(**asdict(known[cell.teacher])),
        machines=loaded.experiment.resources.nodes,
        most_layers=extent.most_layers,
        objective=training.objective,
        optimizer=training.optimizer,
        lengths=lengths,
        steps=extent.steps,
        disk_mib=extent.disk_mib,
        link_mib=extent.link_mib,
        **_part(training, LoopSettings),
        **_part(training, ParallelSettings),
    )


def _decoding(loaded: Experiment, extent: Extent, taken: str) -> ProveDecodingSettings:
    sampling = _part(loaded.experiment.evaluation, SamplingSettings)
    longest = sampling["max_model_tokens"] - extent.new_tokens
    if longest < 1:
        raise ExperimentError(
            f"{loaded.file}: evaluation.max_model_tokens = {sampling['max_model_tokens']} leaves no room for a prompt "
            f"beside the {extent.new_tokens} tokens that a proof decodes",
            f"set it to {extent.new_tokens + 1} or more, or prove another experiment",
        )
    contexts = sorted({min(tokens, longest) for tokens in extent.contexts})
    sequences = sorted({min(count, sampling["batch_sequences"]) for count in extent.sequences})
    return ProveDecodingSettings(
        **sampling, taken=taken, sequences=sequences, contexts=contexts, new_tokens=extent.new_tokens
    )


def _part(of: Record, record: type[Record]) -> Any:
    return part(of, record)
