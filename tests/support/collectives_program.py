"""What one of four ranks sends in a training step, counted without the others: `python collectives_program.py WAY...`

WAY is a way of training in bfloat16 (`ddp`, `zero2`), or in float32 weights (`zero2-float32`). Prints, for each,
`{"parameters", "collectives": {operation: {"calls", "bytes", "sent_bytes"}}}` of the second step, of one pass. The
other ranks are PyTorch's fake process group, so sums have sizes and no meaning. ZeRO-3 is not counted: it leaves
weights as small as these whole.
"""

import json
import sys
from collections import Counter, defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from essence.distill.backends import make_backend
from essence.distill.batches import Batch
from essence.distill.float32_masters import lowers_weights
from essence.distill.module import Distiller
from essence.distill.ranks import Ranks
from essence.distill.schedule import CyclePoint
from support.small_training import TRAIN, model, settings
from support.some_resources import some_objective, some_resources

DEVICES = 4
CPU = torch.device("cpu")
SENT = {"allreduce_": 2.0, "broadcast_": 1.0, "reduce_": 1.0, "_allgather_base_": 1.0}
"""Of the bytes of the whole tensor, times (N - 1) / N: what a ring makes each rank send."""


class Collectives(TorchDispatchMode):
    """Counts collectives and the bytes of their largest tensor, which is the whole one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Counter[str]] = defaultdict(Counter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            sides = [tree_leaves(arg) for arg in args]
            size = max(sum(one.nbytes for one in side if isinstance(one, Tensor)) for side in sides)
            sent = round(size * SENT[name] * (DEVICES - 1) / DEVICES)
            self.found[name].update(calls=1, bytes=size, sent_bytes=sent)
        return func(*args, **(kwargs or {}))


def step_of(way: str) -> dict[str, object]:
    parallel, _, lower = way.partition("-")
    dtype = lower or "bfloat16"
    chosen = settings(
        parallel=parallel,
        processes=DEVICES,
        compute_dtype=dtype,
        reduce_dtype=dtype,
        objective=some_objective(kd_weight=0.0),
    )
    student, resources = model(0, hidden=64), some_resources()
    parameters = sum(parameter.numel() for parameter in student.parameters())
    autocast = dtype == "bfloat16" and not lowers_weights(chosen)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    distiller = Distiller(student, chosen.objective, resources.loss, kind, autocast)
    backend = make_backend(distiller, chosen, Ranks(0, DEVICES, 0), CPU, None)
    batch = Batch.of(TRAIN[:1], 16, CPU)
    for _ in range(2):
        with Collectives() as counted:
            backend.accumulate(batch, batch.weights, None, None, last=True)
            backend.step(CyclePoint(lr=1e-3, beta1=0.9))
    return {"parameters": parameters, "collectives": counted.found}


def main(ways: list[str]) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=DEVICES)
    print(json.dumps({way: step_of(way) for way in ways}))


if __name__ == "__main__":
    main(sys.argv[1:])
