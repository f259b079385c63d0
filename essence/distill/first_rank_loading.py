"""Models that several ranks hold, read from disk by the first rank alone and sent to the others, tensor by tensor.

So a machine's main memory holds one model at a time on its way to the devices, whatever the number of its ranks.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from essence.distill.ranks import Ranks
from essence.models.loading import load_model, load_unfilled


def load_once(folder: Path, dtype: torch.dtype, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model of a folder on this rank's device; every rank calls this, and only the first needs its weights.

    Raises:
        InputError: as `load_model`, on the first rank; the others are ended by what started them.
    """
    if ranks.processes == 1:
        return load_model(folder, dtype, device)
    model = load_model(folder, dtype, device) if ranks.first else load_unfilled(folder, dtype, device)
    ranks.wait()  # reading takes the first rank longer than any wait on a GPU may
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    return model
