"""What generating and grading add to the groups of their manifests."""

from typing import Annotated

from pydantic import Field

from essence.record.manifest import CostMore
from essence.record.record_files import Group, Number

Counts = dict[str, int]


class CountAndShare(Group):
    count: int
    share: Number
    cut: int | None = None
    """Of loops: how many were ended by the kit."""


class GenerateResults(Group):
    samples: int
    problems: int
    finish_reasons: Counts
    stop_tokens: Counts = Field(default_factory=dict)
    loops: CountAndShare | None = None
    at_cap: CountAndShare | None = None
    mean_completion_tokens: Number


class GenerateData(Group):
    prompts_sha256: str | None = None


class GenerateExecuted(Group):
    samples_per_problem: int | None = None
    max_new_tokens: int | None = None
    smallest_max_new_tokens: int | None = None
    shortest_prompt_tokens: int | None = None
    longest_prompt_tokens: int | None = None
    stop_loops: bool | None = None
    decoder: str | None = None
    decoder_version: str | None = None
    """As what follows, None where all completions were there before."""
    replicas: int | None = None
    enforce_eager: bool | None = None
    tensor_parallel_size: int | None = None
    seed: int | None = None
    stop_token_ids: list[int] = Field(default_factory=list)
    template_sha256: str | None = None
    dtype: str | None = None


class GenerateLoad(CostMore):
    """How the decoder ran in the last attempt; None where all completions were there before, where the decoder does not
    count it, and in records of earlier versions."""

    decoder_start_s: Number | None = None
    """Seconds until it could take requests."""
    decode_tokens_per_s: Number | None = None
    """Tokens of completions a second, from then on, of all copies of the model together."""
    key_value_tokens: int | None = None
    """Tokens whose keys and values all copies together have room for."""
    preemptions: int | None = None
    """How often a sequence lost its keys and values to others, and was read again."""


class GenerateMore(GenerateLoad):
    """What generation counts beside the cost of every stage."""

    prompt_tokens: int


class BenchmarkResolved(Group):
    name: str | None = None
    problem_field: str | None = None
    answer_field: str | None = None
    answer_type: str | None = None
    prompt: str | None = None
    problems: int | None = None


class GenerateResolved(Group):
    samples: int | None = None
    max_new_tokens: int | None = None
    max_model_tokens: int | None = None
    stop_loops: bool | None = None
    dtype: str | None = None
    temperature: Number | None = None
    seed: int | None = None
    benchmark: BenchmarkResolved = Field(default_factory=BenchmarkResolved)


class ProblemCount(Group):
    """The samples of one problem."""

    problem: str
    correct: int
    samples: int
    tokens: int | None = None
    """Of all its completions; this and the next two are not in records of earlier versions."""
    stopped: int | None = None
    at_cap: int | None = None


class EstimateRecord(Group):
    """An estimate with its interval, as `essence/evaluation/statistics.py` makes it."""

    value: Number | None
    standard_error: Number | None
    low: Number | None
    high: Number | None
    n: int | None = None
    method: str | None = None


class Doubts(Group):
    """What speaks against an accuracy (essence/evaluation/doubts.py)."""

    graders_disagree: int = 0
    disagreeing: Counts = Field(default_factory=dict)
    answers_not_from_a_box: int = 0
    box_in_thought_alone: int = 0

    @property
    def words(self) -> str:
        """`graders disagree on 3, answers not taken from a box 12, box inside the thought alone 4`."""
        disagree = f"graders disagree on {self.graders_disagree}"
        return (
            f"{disagree if self.disagreeing else 'no other grader to compare with'}, "
            f"answers not taken from a box {self.answers_not_from_a_box}, "
            f"box inside the thought alone {self.box_in_thought_alone}"
        )


class GradeResults(Group):
    benchmark: str
    metric: str
    """`aime25 avg@64`."""
    accuracy: Number
    standard_error: Number | None
    interval: Annotated[list[Number | None], Field(min_length=2, max_length=2)]
    """Low, high; nulls for a single problem."""
    confidence: Number
    method: str
    per_problem: list[ProblemCount]
    finish_reasons: Counts
    mean_completion_tokens: Number
    median_completion_tokens: Number | None = None
    longest_completion_tokens: int | None = None
    completion_tokens: EstimateRecord | None = None
    """Mean with its interval over problems; this and the next two are not in records of earlier versions."""
    stop_rate: EstimateRecord | None = None
    cap_rate: EstimateRecord | None = None
    statuses: Counts = Field(default_factory=dict)
    pass_at_k: dict[str, EstimateRecord] = Field(default_factory=dict)
    majority_at_k: dict[str, EstimateRecord] = Field(default_factory=dict)
    doubts: Doubts | None = None


class GradeData(Group):
    samples_sha256: str | None = None


class GradeExecuted(Group):
    grader: str | None = None
    grader_version: str | None = None
    grader_lock_sha256: str | None = None
    """None of a grader that is in the environment itself."""
    other_graders: dict[str, str] = Field(default_factory=dict)
    """Other grader -> its version."""
    samples_per_problem: int | None = None


class GradeResolved(Group):
    grader: str | None = None
    samples: int | None = None
    confidence: Number | None = None
    benchmark: BenchmarkResolved = Field(default_factory=BenchmarkResolved)
