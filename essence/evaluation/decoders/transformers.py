"""Decode with a causal language model of transformers, in fixed batches.

The requests are cut into batches that depend on nothing but the settings. A row's random numbers come from its own
seed, so only rounding depends on the batch, and a batch that a kill interrupted is redone as it was.
"""

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import DynamicCache

from essence.errors import MachineError
from essence.evaluation.decoders import DecoderFacts, DecoderLoad, DecodeSettings, Finished
from essence.evaluation.loops import LOOK_EVERY_TOKENS, ends_in_loop
from essence.evaluation.requests import Completion, FinishReason, Request, RequestKey
from essence.models.loading import load_model


class TransformersDecoder:
    """A model with a growing key-value cache, on one device."""

    def __init__(self, settings: DecodeSettings) -> None:
        """Load the model; MachineError when GPUs are promised and there is none."""
        asked, gpus = settings.generate, settings.resources.gpus
        torch.set_num_threads(settings.resources.threads)
        began = time.perf_counter()
        self.model = _load(settings, gpus)
        self.start_s = time.perf_counter() - began
        self.stop_ids = frozenset(settings.stop_ids)
        self.temperature, self.top_p, self.batch = asked.temperature, asked.top_p, asked.batch_sequences
        self.loops = settings.loops
        self.facts: DecoderFacts = {"decoder": "transformers", "decoder_version": transformers.__version__}

    def complete(self, requests: Sequence[Request], present: Collection[RequestKey]) -> Iterator[list[Finished]]:
        """Batch by batch; one that is there in part is decoded again as a whole."""
        for first in range(0, len(requests), self.batch):
            members = requests[first : first + self.batch]
            if not all(member.key in present for member in members):
                completions = yield from self._decode(members)
                yield list(zip(members, completions, strict=True))

    def load(self) -> DecoderLoad:
        """Its memory is that of this process, as the stage measures it."""
        return DecoderLoad(start_s=self.start_s)

    def close(self) -> None:
        del self.model

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request]) -> Generator[list[Finished], None, list[Completion]]:
        """Decode one batch; a row leaves the batch, and the cache, when it stops, loops or reaches its cap.

        Yields nothing after each token, so that a stop is seen in the middle of a batch of hours.
        """
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
                reason = self._finish_reason(generated[index], requests[index].max_new_tokens)
                if reason is None:
                    rows_kept.append(row)
                else:
                    done[index] = Completion(generated[index], reason, time.perf_counter() - started)
            if not rows_kept:
                break
            yield []
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

    def _finish_reason(self, generated: list[int], cap: int) -> FinishReason | None:
        if generated[-1] in self.stop_ids:
            return "stop"
        if len(generated) == cap:
            return "length"
        looks = self.loops.cut and len(generated) % LOOK_EVERY_TOKENS == 0
        return "loop" if looks and ends_in_loop(generated, self.loops) else None


def _load(settings: DecodeSettings, gpus: int) -> Any:
    if gpus and not torch.cuda.is_available():
        raise MachineError(f"{gpus} GPUs were given to this stage, but torch {torch.__version__} finds no CUDA device.")
    device = torch.device("cuda" if gpus else "cpu")
    return load_model(settings.model, getattr(torch, settings.generate.dtype), device).eval()


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
