"""Rollouts: a student continues the prompts of its rows, and is taught on what it said.

The words are the student's own, drawn from its whole vocabulary at a temperature, and stop at the end of a turn or
after k tokens; no gradient goes through the drawing. What follows is a training as any other: a rollout is a row whose
prompt is read and whose further tokens are labels.

Source of the arm: "Fast and effective on-policy distillation from reasoning prefixes" (arXiv:2602.15260), as its
abstract has it: the loss on a prefix of the student's own output, sampling stopped there. No released code was
followed.

Each number that a token is drawn by is a hash of (seed, step, row, token), so it depends on no other rollout, on no
generator and on no earlier attempt.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from essence.data.draws import mixed, row_hashes
from essence.data.truncation import Example, Tokens
from essence.distill.checkpoint import Sampled
from essence.errors import InputError
from essence.files import read_json
from essence.settings import TrainSettings, rollout_tokens
from essence.sizes.rollout_sizes import RolloutLoad
from essence.sizes.step_rows import Step

Drawn = Callable[[int, int, int], None]
"""Told of rollouts under way: tokens of all of them so far, how many have ended, and how many there are."""
TURN_END = "<|im_end|>"
"""Ends a turn in the chat template, also where a Base model has another token of its own for that."""


@dataclass(frozen=True)
class Rollout:
    """What the student said after one prompt."""

    row: int
    """Position of the row in its data set."""
    prompt: Tokens
    tokens: list[int]
    """At least one; a token that ends a turn is the last."""

    @property
    def example(self) -> Example:
        """What is read of it, its own tokens being the labels."""
        input_ids = np.concatenate([self.prompt, np.array(self.tokens, np.int32)])
        return Example(self.row, input_ids, np.arange(input_ids.size) >= self.prompt.size)


def largest_rollouts(prompts: Sequence[Example], most: int) -> list[Example]:
    """The rows as they are if every rollout is as long as it may be; prompts of one length share their arrays."""
    of_length = {row.input_ids.size: Rollout(row.row, row.input_ids, [0] * most).example for row in prompts}
    return [replace(of_length[row.input_ids.size], row=row.row) for row in prompts]


def rollouts_together(prompts: Sequence[Example], steps: Sequence[Step], every_steps: int, most: int) -> RolloutLoad:
    """The most that is drawn at once."""
    windows = [sum(map(len, steps[first : first + every_steps])) for first in range(0, len(steps), every_steps)]
    return RolloutLoad(max(windows), max(row.input_ids.size for row in prompts), most)


def ends_of_turn(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens at which a rollout stops, those at which an evaluation under protocol `corrected` does: the model's own
    (generation_config.json, else config.json) and `<|im_end|>`.

    Raises:
        InputError: the tokenizer has no `<|im_end|>`.
    """
    own = None
    for name in ("generation_config.json", "config.json"):
        if own is None and (folder / name).is_file():
            own = read_json(folder / name).get("eos_token_id")
    turn_end = tokenizer.get_vocab().get(TURN_END)
    if turn_end is None:
        raise InputError(f"{folder}: the tokenizer has no {TURN_END}, at which a rollout has to stop")
    return frozenset([*(own if isinstance(own, list) else [] if own is None else [own]), turn_end])


def uniforms(seed: int, step: int, rows: Sequence[int], count: int) -> NDArray[np.float64]:
    """The numbers that rollouts are drawn by, in [0, 1), shape (rows, count).

    Args:
        seed: of the draw.
        step: optimiser step that reads the rollouts, from 0.
        rows: positions of the rows in their data set.
        count: tokens of each.
    """
    of_rows = mixed(row_hashes(np.array(rows, np.int64), seed) ^ mixed(np.array([step], np.uint64)))
    hashes = mixed(of_rows[:, None] + np.arange(1, count + 1, dtype=np.uint64))
    numbers: NDArray[np.float64] = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def choose_tokens(logits: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """Draw a token a row by inverting the cumulative distribution, in float64.

    Args:
        logits: shape (rows, vocabulary).
        numbers: float64, shape (rows,), in [0, 1).
        temperature: above 0.
    """
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    found = (cumulative <= numbers[:, None] * cumulative[:, -1:]).sum(-1)
    return found.clamp(max=logits.shape[-1] - 1)


def _unseen(tokens: int, ended: int, rollouts: int) -> None:
    """Drawing that nobody watches."""


@torch.no_grad()
def continue_prompts(
    model: nn.Module,
    prompts: Sequence[Tokens],
    numbers: NDArray[np.float64],
    temperature: float,
    ends: Collection[int],
    device: torch.device,
    drawn: Drawn = _unseen,
) -> list[list[int]]:
    """What a model says after each prompt: up to `numbers.shape[1]` tokens, or to a token of `ends`, which is kept.

    Prompts are padded on the left; a row that has ended leaves the batch and its cache.

    Args:
        model: causal language model of transformers, in its evaluation mode.
        prompts: at least one, none of them empty.
        numbers: as of `uniforms`, a line for each prompt.
        temperature: as of `choose_tokens`.
        ends: token ids.
        device: where the model is.
        drawn: called after every token of the longest.
    """
    said: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    tokens, mask = _left_padded(prompts, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    caching: Any = model
    cache = DynamicCache(config=caching.config)
    for place in range(numbers.shape[1]):
        logits = caching(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        chosen = choose_tokens(logits, torch.from_numpy(numbers[live, place]).to(device), temperature)
        for index, token in zip(live, chosen.tolist(), strict=True):
            said[index].append(token)
        going = [line for line, index in enumerate(live) if said[index][-1] not in ends]
        drawn(sum(map(len, said)), len(said) - len(going), len(said))
        if not going:
            break
        if len(going) < len(live):
            kept = torch.tensor(going, device=device)
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            cache.batch_select_indices(kept)
            live = [live[line] for line in going]
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=-1)
    return said


def _left_padded(prompts: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts on the right edge of an int64 (rows, longest prompt), and the attention mask of that shape."""
    longest = max(prompt.size for prompt in prompts)
    tokens, mask = (np.zeros((len(prompts), longest), np.int64) for _ in range(2))
    for line, prompt in enumerate(prompts):
        tokens[line, longest - prompt.size :], mask[line, longest - prompt.size :] = prompt, 1
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


class OnPolicy:
    """Lets the student speak before every `every_steps` steps, and hands each step its rollouts."""

    def __init__(
        self, settings: TrainSettings, steps: Sequence[Step], prompts: Sequence[Example], ends: Collection[int]
    ) -> None:
        """`steps`: of all epochs, indices into `prompts`; `ends`: of `ends_of_turn`."""
        most = rollout_tokens(settings.view.span)
        if settings.rollouts is None or most is None:
            raise ValueError(f"span '{settings.view.span}' with rollouts = {settings.rollouts}: one needs the other")
        self.rule, self.most, self.seed = settings.rollouts, most, settings.view.draw_seed
        self.steps, self.prompts, self.ends = steps, prompts, ends

    def of_step(
        self, step: int, sampled: Sampled, model: nn.Module, device: torch.device, drawn: Drawn = _unseen
    ) -> list[Rollout]:
        """The rollouts of step `step`, from 0; `sampled` counts them, and keeps those that later steps will read."""
        if not sampled.waiting:
            sampled.waiting = self._draw(step, model, device, drawn)
            sampled.drawn_before_step = step
        rows = [self.prompts[index] for index in self.steps[step]]
        rollouts = [Rollout(*one) for one in zip(
            (row.row for row in rows), (row.input_ids for row in rows), sampled.waiting.pop(0), strict=True
        )]  # fmt: skip
        sampled.rollouts += len(rollouts)
        sampled.prompt_tokens += sum(one.prompt.size for one in rollouts)
        sampled.tokens += sum(len(one.tokens) for one in rollouts)
        sampled.ended += sum(self.has_ended(one) for one in rollouts)
        return rollouts

    def has_ended(self, rollout: Rollout) -> bool:
        """True when the student ended its turn itself."""
        return rollout.tokens[-1] in self.ends

    def _draw(self, first: int, model: nn.Module, device: torch.device, drawn: Drawn) -> list[list[list[int]]]:
        """What is said for each of the next steps, all of it by the student as it is now."""
        steps = self.steps[first : first + self.rule.every_steps]
        rows = [[self.prompts[index] for index in step] for step in steps]
        numbers = [
            uniforms(self.seed, first + place, [row.row for row in step], self.most) for place, step in enumerate(rows)
        ]
        prompts = [row.input_ids for step in rows for row in step]
        rule, together = self.rule, np.concatenate(numbers)
        said = iter(continue_prompts(model, prompts, together, rule.temperature, self.ends, device, drawn))
        return [[next(said) for _ in step] for step in rows]


def rollouts_sha256(rollouts: Sequence[Rollout]) -> str:
    """Of rows and tokens, in order: position and numbers of tokens as int64, then prompt and own tokens as int32."""
    digest = hashlib.sha256()
    for one in rollouts:
        digest.update(np.array([one.row, one.prompt.size, len(one.tokens)], "<i8").tobytes())
        digest.update(one.prompt.astype("<i4", copy=False).tobytes())
        digest.update(np.array(one.tokens, "<i4").tobytes())
    return digest.hexdigest()
