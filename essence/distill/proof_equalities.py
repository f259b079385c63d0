"""What has to be equal on a machine: packed rows and rows by themselves, a step and the same step, kept and recomputed.

The attention of packed rows is tried at the real size of heads, in the dtype that trains, with the kernel that trains.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from essence.distill.attention import VARLEN_DTYPES, row_attention
from essence.distill.devices import COMPUTE_DTYPES
from essence.distill.proof_checks import Distance, Finding, Went, apart, bounded, compared, exact_float32, largest
from essence.distill.proof_steps import SEED, Steps, alone, as_pair, random_rows, small
from essence.distill.proof_timing import profiled
from essence.settings import Resources
from essence.settings.proving import ProveTrainingSettings

ROW_LENGTHS = (1, 37, 130, 64, 256)
"""Of the packed rows: one token, no multiple of a kernel's block, exact ones."""
ATTENTION_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest relative difference from float64, in the norm of the whole tensor: of the output and of the gradients."""
FLASH = "flash"
"""In the names of the kernels that need no scores of T x T."""
STEPS = 3


class Attended(NamedTuple):
    """Output and gradients of one attention."""

    output: Tensor
    gradients: Sequence[Tensor]
    """In queries, keys and values."""


@exact_float32()
def attention_finding(asked: ProveTrainingSettings, device: torch.device) -> Finding:
    """The attention of packed rows beside one attention a row in float64, forward and backward; and by which kernel."""
    dtype, sizes = COMPUTE_DTYPES[asked.compute_dtype], asked.student_sizes
    total, draws = sum(ROW_LENGTHS), torch.Generator(device).manual_seed(SEED)
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    states = [torch.randn(1, count, total, sizes.head_dim, generator=draws, device=device).to(dtype) for count in heads]
    pull = torch.randn(1, total, sizes.heads, sizes.head_dim, generator=draws, device=device).to(dtype)
    starts = torch.tensor([0, *torch.tensor(ROW_LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device=device)
    found: list[Attended] = []
    seen = profiled(
        lambda: found.append(_attended(functools.partial(_packed, row_starts=starts), states, pull)), device
    )
    exact = _attended(_row_by_row, [one.double() for one in states], pull.double())
    packed = found[0]
    pairs = zip((packed.output, *packed.gradients), (exact.output, *exact.gradients), strict=True)
    most = largest(apart(one, other) for one, other in pairs)
    cure = "set packing = false in [training]"
    finding = bounded("attention", "packed rows and rows attended one by one", most, ATTENTION_BOUNDS[dtype], cure)
    if device.type == "cpu" or dtype not in VARLEN_DTYPES:
        return finding
    return _with_kernel(finding, [event.name for event in seen])


def _with_kernel(finding: Finding, kernels: Sequence[str]) -> Finding:
    """And whether a flash kernel ran; where the driver lets nobody look, the sentence says so."""
    if not kernels:
        return finding._replace(sentence=f"{finding.sentence}; the driver does not tell which kernels ran")
    flash = sorted({name for name in kernels if FLASH in name.lower()})
    if flash:
        return finding._replace(sentence=f"{finding.sentence}, by {flash[0][:60]}")
    told = f"{finding.sentence}; no flash kernel ran ({', '.join(sorted(set(kernels))[:3])})"
    return Finding(finding.name, False, f"{told}: take the locked PyTorch and a GPU of compute capability 8.0 or more")


def _attended(attend: Callable[..., Tensor], states: Sequence[Tensor], pull: Tensor) -> Attended:
    given = [one.detach().clone().requires_grad_() for one in states]
    output = attend(*given)
    output.backward(pull)  # type: ignore[no-untyped-call]
    return Attended(output.detach(), [one.grad for one in given if one.grad is not None])


def _packed(query: Tensor, key: Tensor, value: Tensor, row_starts: Tensor) -> Tensor:
    """As the layers of a packed batch call it."""
    return row_attention(nn.Module(), query, key, value, None, row_starts, max(ROW_LENGTHS))[0]


def _row_by_row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax of masked scores, each row by itself; shapes as of `row_attention`."""
    shared = query.shape[1] // key.shape[1]
    rows = []
    for one, of_one, its_own in zip(
        *(torch.split(each, list(ROW_LENGTHS), dim=2) for each in (query, key, value)), strict=True
    ):
        scores = one @ of_one.repeat_interleave(shared, 1).transpose(-1, -2) / math.sqrt(one.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        rows.append(scores.masked_fill(future, -math.inf).softmax(-1) @ its_own.repeat_interleave(shared, 1))
    return torch.cat(rows, dim=2).transpose(1, 2)


def repeat_findings(asked: ProveTrainingSettings, resources: Resources, device: torch.device) -> list[Finding]:
    """A few steps of small models beside the same steps again, and beside steps that recompute activations."""
    little, most = small(asked), Distance.again(asked.compute_dtype, device)
    kept = _stepped(little, resources, device, recomputed=False)
    again = _stepped(little, resources, device, recomputed=False)
    recomputed = _stepped(little, resources, device, recomputed=True)
    return [
        compared(
            "repeat", "steps and the same steps again", (again, kept), most, "report the versions of this machine"
        ),
        compared(
            "recomputation",
            "steps with kept and with recomputed activations",
            (recomputed, kept),
            most,
            'set activation_checkpointing = "off" in [resources]',
        ),
    ]


@exact_float32()
def _stepped(asked: ProveTrainingSettings, resources: Resources, device: torch.device, recomputed: bool) -> Went:
    """With the gradients' norms."""
    form = resources.model_copy(update={"activation_checkpointing": "on" if recomputed else "off"})
    steps = Steps(as_pair(asked), alone(asked), form, device)
    trained = [weight for weight in steps.student.parameters() if weight.requires_grad]
    before = [steps.backend.weight(weight).clone() for weight in trained]
    rows = random_rows([40, 23, 31], asked.student_sizes.vocabulary)
    numbers: list[float] = []
    for _ in range(STEPS):
        numbers += steps.step([[row] for row in rows])
    return Went(numbers, before, [steps.backend.weight(weight).clone() for weight in trained])
