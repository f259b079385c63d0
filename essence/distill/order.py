"""The order in which an epoch reads its rows: a different one in each epoch, from the settings alone.

The same as `torch.utils.data.DistributedSampler(shuffle=True)`, which Lightning puts before the released training data,
with all ranks taken together: of each `multiple` places, rank r reads the r-th. Which of our ranks reads a row does not
matter, since a step's loss is a mean over its rows; what a step's rows are does.
"""

from collections.abc import Sequence

import torch

from essence.data.truncation import Example, Places
from essence.settings import OptimizerSettings, OrderSettings
from essence.sizes.step_rows import Step, filled, steps_of_epoch

Steps = list[list[Step]]
"""Indices of the rows of each step of each epoch."""


def epoch_order(rows: int, settings: OrderSettings, epoch: int) -> list[int]:
    """Places of the rows in the order in which an epoch reads them, filled up; tests hold golden hashes of it."""
    generator = torch.Generator().manual_seed(settings.seed + epoch)
    return filled(torch.randperm(rows, generator=generator).tolist(), settings.multiple)


def steps_of_training(
    examples: Sequence[Example], places: Places, optimizer: OptimizerSettings, order: OrderSettings
) -> Steps:
    """The steps of every epoch.

    A row that was left out leaves its step with one fewer, so that all other steps are those of the whole order.
    """
    index_at = {place: index for index, place in enumerate(places.places)}
    lengths = [example.input_ids.size for example in examples]
    epochs = range(optimizer.epochs)
    if places.readings:
        each = places.rows // optimizer.epochs
        orders = [list(range(epoch * each, (epoch + 1) * each)) for epoch in epochs]
    else:
        orders = [epoch_order(places.rows, order, epoch) for epoch in epochs]
    return [steps_of_epoch([index_at.get(place) for place in one], lengths, optimizer) for one in orders]
