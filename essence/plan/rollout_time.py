"""What a student that learns from its own words takes to speak, before it does: FLOPs and GPU hours of its rollouts.

In the terms of the one model of time (`essence/sizes/speeds.py`), for all rollouts that are drawn together:

```
prompts    = flop_s * FLOPs + layer_s * layers
each token = max(weight_s * parameters + sequence_s * n + cache_byte_s * bytes of keys and values, layer_s * layers)
```

The decoding that `invoke prove` measures is vLLM's, which replays recorded graphs. Here transformers starts each layer
from Python, and `layer_s`, which pays for what follows from a forward pass as well, is the most that this takes.
"""

from dataclasses import replace
from typing import NamedTuple

from essence.data.selection import SectionBounds
from essence.plan.model_sizes import prompt_tokens, rollouts_together
from essence.settings import TrainSettings
from essence.sizes.architecture import BFLOAT16_BYTES, Architecture
from essence.sizes.memory import BYTES
from essence.sizes.rollout_sizes import RolloutLoad, rollout_flops
from essence.sizes.speeds import DecodeWork, Speeds, StepWork, cache_bytes, decoding_seconds, step_seconds

LENGTH_ASSUMED = "if every rollout has k tokens"
SPEED_ASSUMED = "a token takes a step of decoding, or the start of every layer by itself if that is longer"


class Rollouts(NamedTuple):
    """Of a whole training, on the one device that it has."""

    flops: float
    seconds: float


def rollouts_of(
    settings: TrainSettings, student: Architecture | None, row: SectionBounds | None, rows: int, speeds: Speeds
) -> Rollouts | None:
    """Each as long as it may be; None of a training on rows as they are, or where a size is not known."""
    together = rollouts_together(settings)
    if together is None or student is None or row is None:
        return None
    drawn, spoken = replace(together, prompt=prompt_tokens(row)), rows * settings.optimizer.epochs
    seconds = spoken / drawn.rows * _seconds_together(student, drawn, BYTES[settings.compute_dtype], speeds)
    return Rollouts(float(spoken * rollout_flops(student, drawn.prompt, drawn.tokens)), seconds)


def _seconds_together(student: Architecture, drawn: RolloutLoad, element_bytes: int, speeds: Speeds) -> float:
    """Of the rollouts that are drawn at once; the first token of each comes of reading its prompt."""
    layers = float(student.layers)
    reading = StepWork(float(drawn.rows * rollout_flops(student, drawn.prompt, 1)), layers, 0.0)
    cached = cache_bytes(student, drawn.rows * (drawn.prompt + drawn.tokens / 2), element_bytes)
    token = DecodeWork(student.parameters * element_bytes / BFLOAT16_BYTES, drawn.rows, cached)
    token_s = max(decoding_seconds(speeds, token), step_seconds(speeds, StepWork(0.0, layers, 0.0)))
    return step_seconds(speeds, reading) + (drawn.tokens - 1) * token_s
