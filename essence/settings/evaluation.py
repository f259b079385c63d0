"""Settings of generate and grade."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from essence.settings.base import Record

GraderName = Literal["math-verify", "lighteval-0.10", "math-verify-0.9"]
"""What decides whether a completion is right (essence/scoring/graders.py)."""
AnswerType = Literal["integer", "number", "latex", "gsm8k"]
"""What a benchmark's answers are (essence/scoring/benchmarks.py says how each is read)."""


class BenchmarkSettings(Record):
    """One benchmark: which fields hold what, and the prompt."""

    name: str
    problem_field: str
    answer_field: str
    answer_type: AnswerType
    prompt: str
    """Text with `{problem}` once; rendered through the model's chat template as the user turn."""
    problems: Annotated[int, Field(gt=0)] | None
    """Take only the first so many problems; None = all."""


class SamplingSettings(Record):
    """How completions are sampled."""

    samples: Annotated[int, Field(gt=0)]
    decoder: Literal["transformers", "vllm"]
    """What turns requests into completions; another one rounds otherwise and draws other random numbers."""
    temperature: Annotated[float, Field(ge=0.0)]
    """0 = greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    max_new_tokens: Annotated[int, Field(gt=0)]
    max_model_tokens: Annotated[int, Field(gt=0)]
    """Prompt and completion together."""
    dtype: Literal["float32", "bfloat16"]
    batch_sequences: Annotated[int, Field(gt=0)]
    """Sequences decoded together; part of the result, since rounding depends on the batch. With vLLM the most that
    may be under way: its memory may allow fewer."""
    loop_tokens: Annotated[int, Field(gt=1)]
    """A completion loops where so many tokens in a row are one block of tokens again and again ..."""
    loop_repeats: Annotated[int, Field(gt=1)]
    """... that fits in them at least so often."""
    stop_loops: bool
    """End a completion where it has begun to loop, and count it; otherwise it goes on to its end and is counted."""

    @model_validator(mode="after")
    def block_of_a_token(self) -> "SamplingSettings":
        if self.loop_repeats > self.loop_tokens:
            raise ValueError(f"loop_repeats = {self.loop_repeats} must be at most loop_tokens = {self.loop_tokens}")
        return self


class GenerateSettings(SamplingSettings):
    """Sample completions of every problem of one benchmark from one model."""

    benchmark: BenchmarkSettings
    model_folder: Literal["model", "best", "last"]
    """Folder of the model in the input's output: `model` of a download, `best` or `last` of a training."""
    stop_at_turn_end: bool
    """Corrected: `<|im_end|>` stops generation beside the model's own eos (trap 6)."""
    seed: Annotated[int, Field(ge=0)]


class GradingSettings(Record):
    """How completions are graded, whichever grader is asked."""

    math_verify: str
    """Version of the environment's own math-verify, behind `math-verify` and `lighteval-0.10`; the stage fails where
    another is installed. That of `math-verify-0.9` is in its lock."""
    timeout_s: Annotated[float, Field(gt=0.0)]
    """Longest time one completion may take before it is recorded as a grading timeout."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Of the intervals."""
    pass_at: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    """Numbers of samples for which pass@k and maj@k are reported; those above `samples` are left out."""


class GradeSettings(GradingSettings):
    """Grade the samples of one generate stage."""

    grader: GraderName
    samples: Annotated[int, Field(gt=0)]
    """Samples that each problem is declared to have; the stage fails where another number is found."""
    benchmark: BenchmarkSettings
