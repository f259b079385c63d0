"""Decoder layers through PyTorch's compiler, and the check that they compute what they did before.

Between its products a layer is some sixty operations (norms, rotary angles, gates, the residual stream), each of which
reads and writes all of a pass; compiled they are about ten kernels. Each layer is compiled by itself, whole and for any
length, inside the recomputation of activation checkpointing: what the compiler cannot follow is an error, and never
a layer that is silently left out. Equal layers share what was compiled for the first.

Layers whose weights are shared out (ZeRO-3, a sharded teacher) or come and go (an offloaded one) are brought together
by hooks that the compiler cannot follow; they stay as they are, and the record says so.

The check compiles the first layer of each model in every way in which the training calls it, always for the same made
rows, so that a resumed training has the same kernels. It asks for no agreement of two roundings with each other: each
is compared with the same layer in a higher precision, and the compiled one may not be much further from that. A call of
another form is compiled when it comes, and runs as it is where that fails, or where ranks have to agree ends the
attempt (`essence/distill/late_graphs.py`).
"""

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from essence.data.truncation import Example
from essence.distill.batches import Batch, model_states
from essence.distill.devices import COMPUTE_DTYPES
from essence.distill.float32_masters import lowers_weights
from essence.distill.late_graphs import LateFailures, compile_backward_with_forward, must_run_alike
from essence.distill.ranks import Ranks
from essence.distill.teachers import LiveTeacher, TeacherStates
from essence.models.template import reason
from essence.settings import TrainSettings
from essence.sizes.memory import compiled_models

LOG = logging.getLogger(__name__)

COMPILER = "inductor"
MOST_GRAPHS = 64
"""Of all layers of a process; one more is a failure, where PyTorch would go on without its compiler."""
CHECKED_LENGTHS = (31, 144)
"""Tokens of the made rows. Packed, and in rows, they give widths (176, 144, 160) that no size of a layer has: the
compiler takes equal sizes for the same one."""
TIMES, FLOORS = 2.0, {torch.float32: 1e-6, torch.bfloat16: 2e-3}
"""A compiled layer may be so many times as far from the exact one as the layer itself, and a few roundings farther."""


@dataclass(frozen=True)
class LayerParity:
    """Relative distances, in the norm of whole tensors, from the same layer in a higher precision."""

    model: str
    """`student` or `teacher`."""
    graphs: int
    """Ways in which the layer was called."""
    eager_error: float
    """Of the layer as the library runs it: its largest, over output and gradients."""
    compiled_error: float
    """Of the compiled one, of the tensor that is worst beside its bound."""
    bound: float
    """What was allowed there."""

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.compiled_error <= self.bound

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class CheckedLayers:
    """What a training goes on with."""

    student: bool = False
    teacher: bool = False
    fell_back: tuple[str, ...] = ()
    """Why layers stayed as they are, where compiled ones were asked for."""
    parity: tuple[LayerParity, ...] = ()
    late: LateFailures = field(default_factory=LateFailures, compare=False)
    """Of this rank, once the training runs."""

    def at_end(self, ranks: Ranks) -> "CheckedLayers":
        """With what could not be compiled on any rank after the check; each rank calls this."""
        late = dict.fromkeys(why for found in ranks.all_of(list(self.late.why.values())) for why in found)
        return replace(self, fell_back=(*self.fell_back, *late))

    def as_json(self) -> dict[str, object]:
        """For the manifest."""
        parity = [one.as_json() for one in self.parity]
        return {"student": self.student, "teacher": self.teacher, "fell_back": list(self.fell_back), "parity": parity}


@dataclass(frozen=True)
class Compilable:
    """A model and how the training calls its layers."""

    name: str
    model: nn.Module
    trained: bool
    dtype: torch.dtype | None
    """Of the weights in training; None = as they are."""
    autocast: torch.dtype | None
    """None = none."""


def settle_layers(
    student: nn.Module,
    teacher: TeacherStates | None,
    settings: TrainSettings,
    packed: bool,
    most_rows: int,
    ranks: Ranks,
    uncompiled: str | None = None,
) -> CheckedLayers:
    """Compile the layers of both models in place, where that is asked for, possible, and right on every rank.

    Args:
        student: with its weights whole on this rank's device, before any backend has it.
        teacher: as the training has it.
        settings: of these, whether layers are compiled, and how they are called.
        packed: whether rows are packed.
        most_rows: rows of a pass that is not packed.
        ranks: have met already; each calls this.
        uncompiled: why the student's layers run as they are since an earlier attempt, the same on every rank; None
            where they do not.
    """
    if not settings.compile_layers:
        return CheckedLayers()
    done: dict[str, bool] = {}
    why, reports, late = [], [], LateFailures()
    for one in _models(student, teacher, settings, uncompiled):
        said, report = (one, None) if isinstance(one, str) else _try(one, settings, packed, most_rows)
        failed = int(ranks.total(torch.tensor([float(said is not None)])).item())
        if failed:
            said = said or f"compiled layers failed on {failed} of {ranks.processes} ranks, whose logs say how"
            LOG.warning("%s: these layers run as they are", said)
            why.append(said)
        if isinstance(one, str):
            continue
        reports += [report] if report else []
        done[one.name] = not failed
        if not failed:
            for layer in decoder_layers(one.model):
                compile_layer(layer)
            late.guard(one.name, decoder_layers(one.model), alike=one.trained and must_run_alike(settings, ranks))
    return CheckedLayers(done.get("student", False), done.get("teacher", False), tuple(why), tuple(reports), late)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a causal language model of transformers, in order; empty where it has no such list."""
    layers = getattr(model.base_model, "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def compile_layer(layer: nn.Module) -> None:
    """Have a layer compiled when it is next called, in whole and for any length."""
    # Where DDP wraps the whole, dynamo would cut every layer where a bucket of gradients ends.
    torch._dynamo.config.optimize_ddp = False
    compile_backward_with_forward()
    layer.compile(backend=COMPILER, fullgraph=True, dynamic=True, recompile_limit=MOST_GRAPHS)


def _models(
    student: nn.Module, teacher: TeacherStates | None, settings: TrainSettings, uncompiled: str | None
) -> Iterator[Compilable | str]:
    """Those whose layers can be compiled, and of the others why not."""
    dtype = COMPUTE_DTYPES[settings.compute_dtype]
    student_whole, teacher_whole = compiled_models(settings)
    if settings.rollouts:
        yield "the student's layers cannot be compiled where it reads its own rollouts token by token"
    elif not student_whole:
        yield "the student's layers cannot be compiled under parallel = 'zero3', which brings their weights together"
    elif uncompiled:
        yield uncompiled
    else:
        lowered = lowers_weights(settings)
        autocast = None if lowered or dtype == torch.float32 else dtype
        yield Compilable("student", student, True, torch.bfloat16 if lowered else None, autocast)
    if isinstance(teacher, LiveTeacher):
        if teacher_whole:
            yield Compilable("teacher", teacher.model, False, None, dtype if teacher.autocast else None)
        else:
            yield f"the teacher's layers cannot be compiled where it is {settings.teacher_placement}"


def _try(
    one: Compilable, settings: TrainSettings, packed: bool, most_rows: int
) -> tuple[str | None, LayerParity | None]:
    """What is wrong with the compiled layers of a model, in words, and what was found where they ran at all."""
    if not decoder_layers(one.model):
        return f"the {one.name} ({type(one.model).__name__}) has no list of layers to compile", None
    try:
        report = _parity(one, settings, packed, most_rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a compiler for two kinds of machines fails in as many ways
        return f"the {one.name}'s layers cannot be compiled on this machine ({reason(error)})", None
    if report.passed:
        return None, report
    return (
        f"the {one.name}'s compiled layers are {report.compiled_error:.1e} from exact ones, at most {report.bound:.1e} "
        f"is right, and the layers as they are {report.eager_error:.1e}",
        report,
    )


def _parity(one: Compilable, settings: TrainSettings, packed: bool, most_rows: int) -> LayerParity:
    """Run the first layer as it is, exactly, and compiled, in every way in which the training calls it."""
    first = decoder_layers(one.model)[0]
    calls = []
    for batch in _made_batches(one.model, settings, packed, most_rows):
        calls += _calls(one, first, batch)
    eager = copy.deepcopy(first) if one.dtype is None else copy.deepcopy(first).to(one.dtype)
    weights_dtype = next(eager.parameters()).dtype
    working = one.autocast or weights_dtype
    exact_dtype = torch.float64 if working == torch.float32 else torch.float32
    exact, compiled = copy.deepcopy(eager).to(exact_dtype), copy.deepcopy(eager)
    compile_layer(compiled)
    errors: list[tuple[float, float]] = []
    for call in calls:
        expected = call.run(exact, exact_dtype, None)
        before, now = (call.run(layer, weights_dtype, one.autocast) for layer in (eager, compiled))
        of_each = zip(before, now, expected, strict=True)
        errors += [(_distance(was, wanted), _distance(found, wanted)) for was, found, wanted in of_each]
    bounds = [(now, TIMES * before + FLOORS[working]) for before, now in errors]
    found, bound = max(bounds, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0] / pair[1])
    return LayerParity(one.name, len(calls), max(before for before, _ in errors), found, bound)


@dataclass(frozen=True)
class Call:
    """One way of calling a layer."""

    states: Tensor
    more: Mapping[str, Any]
    training: bool
    wants_states: bool
    """Whether the states that come in have a gradient."""

    def run(self, layer: nn.Module, dtype: torch.dtype, autocast: torch.dtype | None) -> list[Tensor]:
        """What the layer gives, and where it trains the gradients of what came in and of its weights."""
        layer.train(self.training)

        def as_computed(value: Any) -> Any:
            floats = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floats else value

        states = self.states.to(dtype).requires_grad_(self.wants_states)
        lower = torch.autocast(states.device.type, autocast, enabled=autocast is not None)
        with torch.set_grad_enabled(self.training), lower:
            found: Tensor = layer(states, **tree_map(as_computed, dict(self.more)))
        if not self.training:
            return [found]
        wanted = [one for one in (states, *layer.parameters()) if one.requires_grad]
        draws = torch.Generator().manual_seed(0)
        towards = torch.randn(found.shape, generator=draws, dtype=torch.float64).to(found.device, found.dtype)
        return [found.detach(), *torch.autograd.grad(found, wanted, towards)]


def _calls(one: Compilable, layer: nn.Module, batch: Batch) -> list[Call]:
    """A teacher reads; a student trains and is validated. What comes into the first layer has a gradient or not (under
    adapters it has none, and with recomputation the library asks for one even in validation); deeper it is the rule."""
    calls = []
    for training in (True, False) if one.trained else (False,):
        states, more = _inputs_of(one, layer, batch, training)
        for wants_states in sorted({training, states.requires_grad}, reverse=True):
            calls.append(Call(states.detach(), more, training, wants_states))
    return calls


def _made_batches(model: nn.Module, settings: TrainSettings, packed: bool, most_rows: int) -> Iterator[Batch]:
    """Every form that a batch of the training can have, on the model's device."""
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    device = next(model.parameters()).device
    counts = (2,) if packed else (1, 2) if most_rows > 1 else (1,)
    for count in counts:
        for with_pad in (False, True) if settings.view.left_pad_multiple else (False,):
            rows = made_rows(CHECKED_LENGTHS[-count:], vocabulary, with_pad)
            yield Batch.of(rows, settings.pad_to_multiple, device, packed)


def made_rows(lengths: Sequence[int], vocabulary: int, with_pad: bool) -> list[Example]:
    """Rows of drawn tokens; the last one predicts its first token from a pad where `with_pad`."""
    draws, rows = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        pad = 0 if with_pad and number == len(lengths) - 1 else None
        supervised = np.ones(length, dtype=np.bool_)
        supervised[0] = pad is not None
        rows.append(Example(number, draws.integers(0, vocabulary, length, dtype=np.int32), supervised, pad=pad))
    return rows


class _Reached(Exception):
    """The first layer was called; the rest of the model is not needed."""


def _inputs_of(one: Compilable, layer: nn.Module, batch: Batch, training: bool) -> tuple[Tensor, Mapping[str, Any]]:
    """What a model calls its first layer with: hidden states, and arguments by name."""
    caught: list[tuple[Tensor, Mapping[str, Any]]] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        caught.append((args[0], kwargs))
        raise _Reached

    hook = layer.register_forward_pre_hook(catch, with_kwargs=True)
    device = batch.input_ids.device.type
    lower = torch.autocast(device, one.autocast, enabled=one.autocast is not None)
    try:
        with contextlib.suppress(_Reached), torch.set_grad_enabled(training), lower:
            model_states(one.model, batch)
    finally:
        hook.remove()
    ((states, more),) = caught
    return states, more


def _distance(found: Tensor, expected: Tensor) -> float:
    scale = expected.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
    return float((found.double() - expected.double()).norm() / scale)
