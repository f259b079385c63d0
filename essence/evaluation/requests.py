"""What is asked of a model: a prompt a problem, and a seed and a token cap a (problem, sample).

The order of the requests is fixed, problem by problem and sample by sample, and the random numbers of a request come
from nothing but its own seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from essence.errors import InputError
from essence.evaluation.benchmarks import Problem, render_prompt
from essence.files import read_json, sha256_text
from essence.models.template import render
from essence.settings import GenerateSettings

TURN_END = "<|im_end|>"
SEED_HEX_DIGITS = 12
"""48 bits: exact in every JSON reader."""

RequestKey = tuple[str, int]
"""(problem, sample)."""
FinishReason = Literal["stop", "length", "loop"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "loop")
"""A stop token; the token cap; a loop that was cut because the settings say so."""


@dataclass(frozen=True)
class Prompt:
    """A problem as the model reads it."""

    problem: str
    """The problem's id."""
    text: str
    """Benchmark prompt in the chat template, up to where the assistant begins."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One completion that is asked for."""

    prompt: Prompt
    sample: int
    seed: int
    max_new_tokens: int

    @property
    def key(self) -> RequestKey:
        return self.prompt.problem, self.sample


@dataclass(frozen=True)
class Completion:
    """What came out: the generated ids, the stop token included."""

    token_ids: list[int]
    finish_reason: FinishReason
    """As the decoder saw it; `loop`: it ended the completion because its tail repeats itself."""
    seconds: float
    """Wall time from when its decoding began (a batch under transformers, the request under vLLM) to its end."""


def sample_seed(seed: int, problem: str, sample: int) -> int:
    """Seed of one request: the first 48 bits of the sha256 of `SEED:SAMPLE:PROBLEM ID`."""
    return int(sha256_text(f"{seed}:{sample}:{problem}")[:SEED_HEX_DIGITS], 16)


def render_prompts(tokenizer: Any, problems: Sequence[Problem], prompt: str) -> list[Prompt]:
    """Render each problem as one user turn with the generation prompt, thinking enabled, and tokenise it.

    InputError when the chat template fails or renders nothing.
    """
    prompts = []
    for problem in problems:
        turn = {"role": "user", "content": render_prompt(prompt, problem.problem)}
        text = render(tokenizer, [turn], add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not text.strip() or not ids:
            raise InputError(
                f"The chat template renders problem {problem.id} to nothing, wanted: the problem as a user turn",
                "use a model whose template renders it.",
            )
        prompts.append(Prompt(problem.id, text, tuple(ids)))
    return prompts


def plan_requests(prompts: Sequence[Prompt], settings: GenerateSettings) -> list[Request]:
    """All requests in their fixed order: problem by problem, sample by sample.

    InputError when a prompt leaves no room for a completion under `max_model_tokens`.
    """
    requests = []
    for prompt in prompts:
        room = settings.max_model_tokens - len(prompt.token_ids)
        if room < 1:
            raise InputError(
                f"The prompt of problem {prompt.problem} ({settings.benchmark.name}) has {len(prompt.token_ids)} "
                f"tokens, which leaves no room for a completion: max_model_tokens is "
                f"{settings.max_model_tokens}, wanted: more than {len(prompt.token_ids)}."
            )
        for sample in range(settings.samples):
            seed = sample_seed(settings.seed, prompt.problem, sample)
            requests.append(Request(prompt, sample, seed, min(settings.max_new_tokens, room)))
    return requests


def stop_token_ids(folder: Path, tokenizer: Any, stop_at_turn_end: bool) -> list[int]:
    """The model's own eos (generation_config.json, else config.json), and `<|im_end|>` where asked for; ascending."""
    own = None
    for name in ("generation_config.json", "config.json"):
        if own is None and (folder / name).is_file():
            own = read_json(folder / name).get("eos_token_id")
    ids = set(own if isinstance(own, list) else [] if own is None else [own])
    if stop_at_turn_end:
        turn_end = tokenizer.get_vocab().get(TURN_END)
        if turn_end is None:
            raise InputError(f"The tokenizer has no {TURN_END}, at which stop_at_turn_end = true has to stop.")
        ids.add(turn_end)
    return sorted(ids)


def check_context(folder: Path, max_model_tokens: int) -> None:
    """InputError when the settings let a sequence grow beyond the positions that the model has."""
    positions = read_json(folder / "config.json").get("max_position_embeddings")
    if positions is not None and max_model_tokens > positions:
        raise InputError(
            f"max_model_tokens is {max_model_tokens}, but the model in {folder} has {positions} positions "
            f"(max_position_embeddings in config.json), wanted: at most that."
        )
