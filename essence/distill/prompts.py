"""The rows that a training reads; of a student that learns from its own words, the prompts that it continues."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from essence.data.truncation import Example, Examples
from essence.distill.row_split import CellRows, EntropiesOf, load_cell_rows
from essence.errors import InputError
from essence.models.folder import read_config
from essence.settings import TrainSettings, rollout_tokens


def load_rows(
    path: Path, settings: TrainSettings, eos_id: int, student: Path, entropies: EntropiesOf | None = None
) -> CellRows:
    """The rows of a cell; of a student that learns from its own words, the prompts of those that whole rows have."""
    most = rollout_tokens(settings.view.span)
    if most is None:
        return load_cell_rows(path, settings, eos_id, entropies)
    whole = settings.model_copy(update={"view": settings.view.model_copy(update={"span": "left"})})
    rows = load_cell_rows(path, whole, eos_id)
    return replace(rows, training=prompts_of(rows.training, most, position_limit(student)))


def prompts_of(whole: Examples, most: int, positions: int | None) -> Examples:
    """The prompts of rows that are whole, with chain of thought and answer supervised; none of their tokens is a label.

    Args:
        whole: as the view of whole rows has them.
        most: tokens that the student may say.
        positions: that it has; None = as many as are wanted.

    Raises:
        InputError: a prompt and what may be said after it have more tokens than the student has positions.
    """
    found = []
    for row in whole.examples:
        prompt = row.input_ids[: int(np.flatnonzero(row.supervised)[0])]
        if positions is not None and prompt.size + most > positions:
            raise InputError(
                f"row {row.row} of the data set has a prompt of {prompt.size} tokens, after which {most} of the "
                f"student's own do not fit its {positions} positions (max_position_embeddings)",
                f"use a span rollout-{max(1, positions - prompt.size)} or shorter",
            )
        found.append(Example(row.row, prompt, np.zeros(prompt.size, np.bool_)))
    return Examples(found, whole.skipped, whole.places)


def position_limit(folder: Path) -> int | None:
    """Positions of a model; None where it names none."""
    found = read_config(folder).get("max_position_embeddings")
    return found if isinstance(found, int) else None
