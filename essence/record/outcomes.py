"""What a stage says about itself for its manifest, as a record of its own for each stage."""

from typing import Self

from pydantic import Field, SerializeAsAny

from essence.progress import Progress
from essence.record.evaluation_records import (
    GenerateData,
    GenerateExecuted,
    GenerateResults,
    GradeData,
    GradeExecuted,
    GradeResults,
)
from essence.record.manifest import CostMore
from essence.record.proof_records import ProveDecodingResults, ProveTrainingResults
from essence.record.record_files import Group, Written
from essence.record.stage_records import (
    DownloadData,
    DownloadResults,
    TeacherData,
    TeacherExecuted,
    TeacherResults,
    TokenizeData,
    TokenizeExecuted,
    TokenizeResults,
)
from essence.record.training_records import TrainData, TrainExecuted, TrainResults


class StageCost(Written):
    """What a stage counts; time, and memory where it is None here, are measured by the caller."""

    tokens: int | None = None
    flops: float | None = None
    flops_formula: str | None = None
    """How the FLOPs were counted."""
    energy_j: float | None = None
    peak_memory_gib: float | None = None
    """Of all processes of a stage that is several."""
    peak_gpu_memory_gib: float | None = None
    more: SerializeAsAny[CostMore] = Field(default_factory=CostMore)
    """What this stage alone counts."""


class StageOutcome(Written):
    """What the manifest is given of a finished stage; groups as in `essence/record/manifest.py`."""

    results: Group
    """What was found, with n and intervals where there are any."""
    data: Group = Field(default_factory=Group)
    """What was read, counted and fingerprinted: rows and tokens kept, sha256 of token ids after selection."""
    executed: Group = Field(default_factory=Group)
    """Settings as executed: effective batch, samples per problem, token cap, stop ids, template hash."""
    cost: StageCost = Field(default_factory=StageCost)
    seeds: dict[str, int] = Field(default_factory=dict)

    def with_gpu_use(self, progress: Progress) -> Self:
        """The same, with how busy the GPUs were, where that was seen."""
        share = progress.gpu_busy_share
        if share is None:
            return self
        more = self.cost.more.plus(gpu_busy_share=round(share, 4))
        return self.model_copy(update={"cost": self.cost.model_copy(update={"more": more})})


class DownloadOutcome(StageOutcome):
    results: DownloadResults
    data: DownloadData


class TokenizeOutcome(StageOutcome):
    results: TokenizeResults
    data: TokenizeData
    executed: TokenizeExecuted


class TeacherOutcome(StageOutcome):
    results: TeacherResults
    data: TeacherData
    executed: TeacherExecuted


class TrainOutcome(StageOutcome):
    results: TrainResults
    data: TrainData
    executed: TrainExecuted


class GenerateOutcome(StageOutcome):
    results: GenerateResults
    data: GenerateData
    executed: GenerateExecuted


class GradeOutcome(StageOutcome):
    results: GradeResults
    data: GradeData
    executed: GradeExecuted


class ProveTrainingOutcome(StageOutcome):
    results: ProveTrainingResults


class ProveDecodingOutcome(StageOutcome):
    results: ProveDecodingResults
