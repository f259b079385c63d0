"""Settings of generate and grade."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from essence.settings.base import LARGEST_COUNT, Count, Inside, Record, Seed, Share

GraderName = Literal["math-verify", "lighteval-0.10", "math-verify-0.9"]
"""What decides whether a completion is right (essence/evaluation/graders.py)."""
AnswerType = Literal["integer", "number", "latex", "gsm8k"]
"""What a benchmark's answers are (essence/evaluation/benchmarks.py says how each is read)."""


SMALLEST_TEMPERATURE = 0.001


class BenchmarkSettings(Record):
    """One benchmark: which fields hold what, and the prompt."""

    name: str
    problem_field: str
    answer_field: str
    answer_type: AnswerType
    prompt: str
    """Text with `{problem}` once; rendered through the model's chat template as the user turn."""
    problems: Count | None
    """Take only the first so many problems; None = all."""


class SamplingSettings(Record):
    """How completions are sampled."""

    samples: Count
    decoder: Literal["transformers", "vllm"]
    """What turns requests into completions; another one rounds otherwise and draws other random numbers."""
    temperature: Annotated[float, Field(ge=0.0, le=100.0)]
    """0 = greedy."""
    top_p: Share
    max_new_tokens: Count
    max_model_tokens: Count
    """Prompt and completion together."""
    dtype: Literal["float32", "bfloat16"]
    batch_sequences: Count
    """Sequences decoded together; part of the result, since rounding depends on the batch. With vLLM the most that
    may be under way: its memory may allow fewer."""
    loop_tokens: Annotated[int, Field(gt=1, le=LARGEST_COUNT)]
    """A completion loops where that many tokens in a row are one block of tokens again and again ..."""
    loop_repeats: Annotated[int, Field(gt=1, le=LARGEST_COUNT)]
    """... that fits in them at least so often."""
    stop_loops: bool
    """End a completion where it has begun to loop, and count it; otherwise it goes on to its end and is counted."""

    @field_validator("temperature")
    @classmethod
    def divides(cls, temperature: float) -> float:
        """Logits are divided by it."""
        if 0.0 < temperature < SMALLEST_TEMPERATURE:
            raise ValueError(f"must be 0, which is greedy, or at least {SMALLEST_TEMPERATURE}")
        return temperature

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
    seed: Seed


class GradingSettings(Record):
    """How completions are graded, whichever grader is asked."""

    math_verify: str
    """Version of the environment's own math-verify, behind `math-verify` and `lighteval-0.10`; the stage fails where
    another is installed. That of `math-verify-0.9` is in its lock."""
    timeout_s: Annotated[float, Field(ge=0.001, le=86_400.0)]
    """Longest time one completion may take before it is recorded as a grading timeout."""
    confidence: Inside
    """Of the intervals."""
    pass_at: Annotated[list[Count], Field(min_length=1)]
    """Numbers of samples for which pass@k and maj@k are reported; those above `samples` are left out."""


class GradeSettings(GradingSettings):
    """Grade the samples of one generate stage."""

    grader: GraderName
    samples: Count
    """Samples that each problem is declared to have; the stage fails where another number is found."""
    benchmark: BenchmarkSettings
