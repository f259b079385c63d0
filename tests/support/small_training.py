"""A training of two models of a few thousand weights on ten made rows, called as the stage calls it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from essence.data.truncation import Example
from essence.distill.devices import COMPUTE_DTYPES
from essence.distill.storage import TrainResult
from essence.distill.teachers import LiveTeacher
from essence.distill.trainer import train
from essence.progress import Progress, StopRequest
from essence.settings import Resources, TrainSettings
from support.some_resources import some_objective, some_optimizer, some_resources, some_view

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
VOCABULARY = 23


def model(seed: int, hidden: int = 16, vocabulary: int = VOCABULARY) -> Any:
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        tie_word_embeddings=True,
    )
    return transformers.Qwen3ForCausalLM(config)


def settings(**changes: Any) -> TrainSettings:
    record = {
        "rows": {
            "max_row_tokens": 100,
            "train_rows": 10,
            "validation_rows": 4,
            "split_seed": 1,
        },
        "view": some_view(),
        "validation_view": "same",
        "objective": some_objective(kd_weight=0.5),
        "optimizer": some_optimizer(),
        "order": {"seed": 7, "multiple": 1},
        "checkpoint_ranks": 1,
        "validations_per_epoch": 2,
        "compute_dtype": "float32",
        "pad_to_multiple": 16,
        "seed": 3,
    }
    return TrainSettings.model_validate({**record, **changes})


RESOURCES = some_resources(threads=1, micro_batch_rows=2, micro_batch_tokens=1000, checkpoint_every_s=600.0)
AS_RELEASED: dict[str, Any] = {"order": {"seed": 42, "multiple": 4}, "checkpoint_ranks": 4}
SFT = {"objective": some_objective(kd_weight=0.0)}
PAD = 0


def examples(count: int, seed: int = 0) -> list[Example]:
    """Every second row predicts its first token from a pad, where left padding to a multiple of 16 has one."""
    random = np.random.default_rng(seed)
    made = []
    for row in range(count):
        length = int(random.integers(5, 40))
        supervised = random.random(length) < 0.7
        supervised[0], supervised[-1] = row % 2 == 0 and length % 16 > 0, True
        ids = random.integers(0, VOCABULARY, length, dtype=np.int32)
        made.append(Example(1000 + row, ids, supervised, pad=PAD if supervised[0] else None))
    return made


TRAIN, VALIDATION = examples(10), examples(4, seed=1)
FIRST = torch.randperm(10, generator=torch.Generator().manual_seed(7)).tolist()[:4]
FIRST_ROWS = re.escape(str([1000 + place for place in FIRST]))
"""Of the first step, as a pattern."""


def run(
    work: Path,
    student: Any,
    teacher: Any = None,
    stop: StopRequest | None = None,
    progress: Progress | None = None,
    validation: list[Example] = VALIDATION,
    resources: Resources = RESOURCES,
    recomputed: bool = False,
    **changes: Any,
) -> TrainResult:
    if recomputed:
        resources = resources.model_copy(update={"activation_checkpointing": "on"})
    dtype = COMPUTE_DTYPES[changes.get("compute_dtype", "float32")]
    return train(
        student,
        None if teacher is None else LiveTeacher(teacher, dtype),
        TRAIN,
        validation,
        settings(**({} if teacher is not None else SFT), **changes),
        resources,
        work,
        progress or Progress(work.parent / "progress.json"),
        StopRequest() if stop is None else stop,  # a request is false until it is made
    )


MEASURED = ("seconds", "peak_memory_gib")


def metrics_without_time(path: Path) -> list[dict[str, Any]]:
    """The records of a training, but for what differs each time."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


class ActAfter(Progress):
    """Calls a function after a number of steps, like a signal or a kill."""

    def __init__(self, path: Path, step: int, action: Callable[[], None]) -> None:
        super().__init__(path)
        self.step, self.action = step, action

    def update(self, phase: str, done: int, total: int, unit: str, note: str = "") -> None:
        super().update(phase, done, total, unit, note)
        if done == self.step:
            self.action()
