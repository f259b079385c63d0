"""Sample completions with transformers: deterministic, and resumable at the batch.

The requests, one a (problem, sample), have a fixed order and are cut into fixed batches. Each has a seed of its own,
and its random numbers come from nothing but that seed, so what a request gives does not depend on what was generated
before or in which attempt. Only rounding depends on the batch, and a batch that a kill interrupted is redone as it was.

Another engine is another `Decode` function: requests in, completions out, in the same order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from essence.errors import InputError
from essence.record.canonical import sha256_text
from essence.scoring.benchmarks import Problem, render_prompt
from essence.scoring.lines import append_lines, recover_lines
from essence.settings import GenerateSettings

TURN_END = "<|im_end|>"
SEED_HEX_DIGITS = 12
"""48 bits: exact in every JSON reader."""


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


@dataclass(frozen=True)
class Completion:
    """What came out: the generated ids, the stop token included."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    seconds: float
    """Wall time from the start of the batch to the end of this completion."""


Decode = Callable[[Sequence[Request]], list[Completion]]


def sample_seed(seed: int, problem: str, sample: int) -> int:
    """Seed of one request: the first 48 bits of the sha256 of `SEED:SAMPLE:PROBLEM ID`."""
    return int(sha256_text(f"{seed}:{sample}:{problem}")[:SEED_HEX_DIGITS], 16)


def render_prompts(tokenizer: Any, problems: Sequence[Problem], prompt: str) -> list[Prompt]:
    """Render each problem as one user turn with the generation prompt, thinking enabled, and tokenise it."""
    prompts = []
    for problem in problems:
        turn = {"role": "user", "content": render_prompt(prompt, problem.problem)}
        text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True, enable_thinking=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
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


def stop_token_ids(model: Any, tokenizer: Any, stop_at_turn_end: bool) -> list[int]:
    """The model's own eos (generation config, else config), and `<|im_end|>` where it is asked for; ascending."""
    own = model.generation_config.eos_token_id
    own = model.config.eos_token_id if own is None else own
    ids = set(own if isinstance(own, list) else [] if own is None else [own])
    if stop_at_turn_end:
        turn_end = tokenizer.get_vocab().get(TURN_END)
        if turn_end is None:
            raise InputError(f"The tokenizer has no {TURN_END}, at which stop_at_turn_end = true has to stop.")
        ids.add(turn_end)
    return sorted(ids)


def generate_samples(
    requests: Sequence[Request], decode: Decode, tokenizer: Any, stop_ids: Sequence[int], batch: int, path: Path
) -> Iterator[int]:
    """Append every request's record to `path`; after each batch yield how many are there.

    What lies in `path` from a killed attempt is kept. A batch that is partly there is decoded again as a whole, because
    its rounding depends on its composition, and only the missing records are written.
    """
    present = {(record["problem"], record["sample"]) for record in recover_lines(path)}
    for first in range(0, len(requests), batch):
        members = requests[first : first + batch]
        missing = {(member.prompt.problem, member.sample) for member in members} - present
        if missing:
            records = [_record(r, c, tokenizer, stop_ids) for r, c in zip(members, decode(members), strict=True)]
            append_lines(path, [r for r in records if (r["problem"], r["sample"]) in missing])
        yield first + len(members)


def _record(request: Request, completion: Completion, tokenizer: Any, stop_ids: Sequence[int]) -> dict[str, Any]:
    """A line of samples.jsonl. The text is without the stop token, and keeps the think markers."""
    ids = completion.token_ids
    shown = ids[:-1] if ids[-1] in stop_ids else ids
    return {
        "problem": request.prompt.problem,
        "sample": request.sample,
        "seed": request.seed,
        "prompt_sha256": sha256_text(request.prompt.text),
        "completion": tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False),
        "tokens": len(ids),
        "finish_reason": completion.finish_reason,
        "seconds": round(completion.seconds, 3),
    }


class TransformersDecoder:
    """`Decode` with a causal language model of transformers and a growing key-value cache."""

    def __init__(self, model: Any, stop_ids: Sequence[int], temperature: float, top_p: float) -> None:
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.temperature = temperature
        self.top_p = top_p

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        """Decode one batch; a row leaves the batch, and the cache, when it stops or reaches its cap."""
        started = time.perf_counter()
        done: dict[int, Completion] = {}
        generated: list[list[int]] = [[] for _ in requests]
        live = list(range(len(requests)))
        uniforms = _uniforms(requests)
        tokens, mask = _left_padded(requests, self.model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        for step in range(uniforms.shape[1]):
            logits = self._forward(tokens, mask, positions, cache)
            draws = torch.from_numpy(uniforms[live, step]).to(logits.device)
            chosen = choose_tokens(logits, draws, self.temperature, self.top_p)
            rows_kept = []
            for row, (index, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
                generated[index].append(token)
                reason = self._finish_reason(token, step + 1, requests[index].max_new_tokens)
                if reason is None:
                    rows_kept.append(row)
                else:
                    done[index] = Completion(generated[index], reason, time.perf_counter() - started)
            if not rows_kept:
                break
            if len(rows_kept) < len(live):
                kept = torch.tensor(rows_kept, device=chosen.device)
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
                cache.batch_select_indices(kept)
                live = [live[row] for row in rows_kept]
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=-1)
        return [done[index] for index in range(len(requests))]

    def _forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits of the next token, [rows, vocabulary]."""
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _finish_reason(self, token: int, tokens: int, cap: int) -> Literal["stop", "length"] | None:
        if token in self.stop_ids:
            return "stop"
        return "length" if tokens == cap else None


def choose_tokens(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Draw a token a row by inverting the cumulative distribution of its nucleus.

    logits [rows, vocabulary], uniforms float64 [rows] in [0, 1); returns int64 [rows]. The nucleus is the shortest list
    of most probable tokens whose probabilities at `temperature` sum to `top_p` or more. Temperature 0: the largest.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    ordered, tokens = logits.float().sort(dim=-1, descending=True, stable=True)
    probabilities = (ordered.double() / temperature).softmax(-1)
    cumulative = probabilities.cumsum(-1)
    last = (cumulative - probabilities < top_p).sum(-1, keepdim=True) - 1
    threshold = uniforms[:, None] * cumulative.gather(-1, last)
    rank = (cumulative <= threshold).sum(-1, keepdim=True).minimum(last)
    return tokens.gather(-1, rank)[:, 0]


def _uniforms(requests: Sequence[Request]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Every draw of a batch, [rows, steps]; Philox keyed with the request's seed, one number a token."""
    steps = max(request.max_new_tokens for request in requests)
    return np.stack([np.random.Generator(np.random.Philox(key=request.seed)).random(steps) for request in requests])


def _left_padded(requests: Sequence[Request], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts on the right edge of an int64 [rows, longest prompt], and the attention mask of that shape."""
    prompts = [request.prompt.token_ids for request in requests]
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    return tokens.to(device), mask.to(device)
