"""Peak of live tensor bytes while a block runs, counted operation by operation: no allocator, no noise."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make inside the block; `peak` is the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {number_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        self._held = {number: held for number, held in self._held.items() if not held[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and number_of(leaf) not in given:
                storage = leaf.untyped_storage()
                self._held[number_of(leaf)] = (StorageWeakRef(storage), storage.nbytes())
        self.live = sum(size for _, size in self._held.values())
        self.peak = max(self.peak, self.live)
        return result


def number_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
