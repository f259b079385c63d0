"""What PyTorch's compiler makes of a decoder layer at the sizes of a real model, counted without running any of it.

The layer is compiled as a training compiles it (essence/distill/compiled_layers.py), on fake tensors, as far as the
compiler's plan: which operations become one kernel, and what each kernel reads and writes. There the compiler is
stopped, before it writes code. The plan is that of its CPU scheduler, since that for GPUs asks the GPU.

A kernel is one launch. Its bytes are the compiler's own count: every tensor that goes in once and every tensor that
comes out once, without those of products and attention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config, ir
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table

from support.step_counts import PRODUCTS, StepCounts

ATTENTION = ("scaled_dot_product", "attend_rows", "varlen_attn")
NO_KERNEL = (ir.MultiOutput, ir.NopKernel)


@dataclass(frozen=True)
class LayerCounts:
    """Of one layer on one pass."""

    forward: StepCounts
    backward: StepCounts | None
    """None of a layer that is not trained."""
    kept_bytes: int
    """What the forward pass hands to the backward pass, without weights and without what comes in."""


class _Planned(Exception):
    """The compiler has its plan."""


def count_layer(layer: nn.Module, call: Callable[[], Tensor]) -> LayerCounts:
    """The plan for `layer`, which `call` calls once, on fake tensors; what `call` gives has a gradient if it trains."""
    torch._dynamo.reset()
    plans: dict[str, StepCounts] = {}
    kept: list[int] = []
    backend: Any = aot_autograd(
        fw_compiler=_planning("forward", plans, kept),
        bw_compiler=_planning("backward", plans),
        inference_compiler=_planning("forward", plans),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table,
    )
    layer.compile(backend=backend, fullgraph=True, dynamic=False)
    found = call()
    if found.requires_grad:
        found.sum().backward()
    torch._dynamo.reset()
    return LayerCounts(plans["forward"], plans.get("backward"), sum(kept))


def _planning(name: str, plans: dict[str, StepCounts], kept: list[int] | None = None) -> Callable[[Any, Any], Any]:
    """A compiler that notes its plan, and what its graph keeps, and runs the graph as it is."""

    def plan(graph: Any, inputs: Any) -> Any:
        found: list[StepCounts] = []

        def note(nodes: list[Any]) -> list[Any]:
            found.append(counts_of(nodes))
            raise _Planned

        try:
            with config.patch(_post_fusion_custom_pass=note, fx_graph_cache=False):
                compile_fx_inner(graph, inputs)
        except Exception as error:
            if not found:
                raise RuntimeError(f"the compiler has no plan of the {name} pass") from error
        plans[name] = found[0]
        if kept is not None:
            kept.append(kept_bytes(graph))

        def run(arguments: list[Any]) -> Any:
            given = list(arguments)
            arguments.clear()
            return torch.fx.Interpreter(graph).run(*given)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    return plan


def kept_bytes(graph: Any) -> int:
    """Of a forward graph's outputs: all but the layer's own, and what comes in; tensors that share memory once."""

    def memory(node: Any) -> Any:
        return node.meta["val"].untyped_storage()

    given = {memory(node)._cdata for node in graph.graph.find_nodes(op="placeholder") if _is_tensor(node)}
    (results,) = next(iter(graph.graph.find_nodes(op="output"))).args
    sizes = {memory(node)._cdata: memory(node).nbytes() for node in results[1:] if _is_tensor(node)}
    return sum(size for place, size in sizes.items() if place not in given)


def _is_tensor(node: Any) -> bool:
    return isinstance(getattr(node, "meta", {}).get("val"), Tensor)


def counts_of(nodes: list[Any]) -> StepCounts:
    """Of the compiler's plan, once it has put together what becomes one kernel."""
    counts = StepCounts()
    for node in nodes:
        if isinstance(node.node, NO_KERNEL):
            continue
        name = _name(node)
        counts.launches += 1
        counts.by_operation[name] += 1
        if name.startswith(PRODUCTS) or any(word in name for word in ATTENTION):
            continue
        moved = node.get_read_write_buffers_sizes()
        counts.bytes_beside_products += moved
        counts.bytes_by_operation[name] += moved
    return counts


def _name(node: Any) -> str:
    """`mm` of a call into a library, `fused` of a kernel that the compiler writes."""
    kernel = getattr(node.node, "python_kernel_name", None)
    return str(kernel).removeprefix("extern_kernels.") if kernel else "fused"
