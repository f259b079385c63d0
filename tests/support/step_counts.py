"""What one training step does besides its products, counted operation by operation: the same on every machine.

An operation that is no view is one launch; operations made of others count as those. Its bytes are what it reads and
writes, without those of products and attention. A tensor that an operation only overwrites is not read; a look-up reads
what it returns. Counted on fake tensors, which have sizes and no numbers, or on real ones.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("mm", "bmm", "addmm", "addmm_", "_scaled_dot_product_flash_attention_for_cpu")
"""And their backward passes, whose names start like these."""
NO_WORK = (
    *("detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "_local_scalar_dense"),
    *("device", "_unsafe_view", "_record_function_enter_new", "_record_function_exit"),
)
"""No kernel: `device` is a question that fake tensors alone ask, `_unsafe_view` a view that autograd hides."""
OVERWRITING = ("copy_", "fill_", "zero_", "_foreach_copy_", "normal_", "uniform_")
LOOK_UPS = ("embedding", "index_select", "gather", "index")


@dataclass
class StepCounts:
    """Of what ran inside `Counting`."""

    launches: int = 0
    bytes_beside_products: int = 0
    by_operation: Counter[str] = field(default_factory=Counter)
    """Operation -> launches."""
    bytes_by_operation: Counter[str] = field(default_factory=Counter)


class Counting(TorchDispatchMode):
    """Counts every operation inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.found = StepCounts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in NO_WORK or (name == "_to_copy" and result is args[0])):
            self._count(name, func, args, kwargs or {}, result)
        return result

    def _count(self, name: str, func: Any, args: Any, kwargs: dict[str, object], result: Any) -> None:
        self.found.launches += 1
        self.found.by_operation[name] += 1
        if name.startswith(PRODUCTS):
            return
        moved = moved_bytes(name, func, args, kwargs, result)
        self.found.bytes_beside_products += moved
        self.found.bytes_by_operation[name] += moved


def moved_bytes(name: str, func: Any, args: Any, kwargs: dict[str, object], result: Any) -> int:
    """Bytes that an operation reads and writes."""
    given = list(zip(func._schema.arguments, args, strict=False))
    given += [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
    written, read = 0, 0
    for argument, value in given:
        size = sum(size_of(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        changed = argument.alias_info is not None and argument.alias_info.is_write
        written += size if changed else 0
        read += size if not changed or not (argument.is_out or name in OVERWRITING) else 0
    if not written:
        written = sum(size_of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        if name in LOOK_UPS:
            read = written + sum(size_of(value) for _, value in given[1:] if isinstance(value, Tensor))
        if name.startswith("new_") or name.endswith("_like"):
            read = 0
    return read + written


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers; where it repeats itself, of one repetition."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride or size == 0 else 1
    return numbers * tensor.element_size()
