"""Compiled layers in calls that the check before the first step has not met: no result is lost because of one.

PyTorch compiles a layer again where a call has another form than those before (sizes that were equal and are not, or
the other way round). Forward and backward pass are compiled together, before anything of the layer has run, so where
the compiler fails the same call can run as it is, and nothing is half done. From the first failure on nothing is
compiled for the layers of that model any more: what is there goes on being used, every other call runs as it is.

That is each process's own affair, but for a student under ZeRO-2 on several ranks. There gradients cross between ranks
in the order in which backward passes find them, and a compiled layer's come in another order than those of the layer as
it is: if one rank went on with layers as they are, sums of different weights would mix. So that rank ends the training,
and from its next start on all ranks run these layers as they are (`essence/distill/storage.py` remembers it).
"""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from essence.distill.ranks import Ranks
from essence.errors import KitError
from essence.models.template import reason
from essence.settings import TrainSettings

LOG = logging.getLogger(__name__)
CURE = "run the command again: from the newest checkpoint on, all ranks run these layers as they are"


class UncompiledError(KitError):
    """Layers that all ranks must run alike cannot be compiled for a pass of this rank, in the middle of a training."""


def must_run_alike(settings: TrainSettings, ranks: Ranks) -> bool:
    """True where ranks whose student runs in different forms would add up gradients of different weights.

    Under `ddp` gradients cross in the order of the weights, and under `zero3` the student is never compiled.
    """
    return settings.parallel == "zero2" and ranks.processes > 1


class LateFailures:
    """Why layers could not be compiled in the middle of a training, by model."""

    def __init__(self) -> None:
        self.why: dict[str, str] = {}

    def guard(self, model: str, layers: Iterable[nn.Module], alike: bool = False) -> None:
        """Let compiled layers run as they are where they cannot be compiled for a call.

        Args:
            model: `student` or `teacher`.
            layers: of it, compiled.
            alike: all ranks must run them in one form (`must_run_alike`): such a call raises UncompiledError.
        """
        for layer in layers:
            layer._compiled_call_impl = _GuardedCall(model, layer, self, alike)

    def note(self, model: str, problem: str) -> None:
        self.why[model] = f"{problem}: such passes run as they are"
        LOG.warning("%s", self.why[model])


class _GuardedCall:
    """In the place of a layer's compiled call."""

    def __init__(self, model: str, layer: nn.Module, failures: LateFailures, alike: bool) -> None:
        self.model, self.layer, self.failures, self.alike = model, layer, failures, alike
        assert layer._compiled_call_impl is not None
        self.compiled = layer._compiled_call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.model in self.failures.why:
            with torch.compiler.set_stance("eager_on_recompile"):
                return self.compiled(*args, **kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except Exception as error:
            if not _of_compiler(error):
                raise
            problem = _problem(self.model, _shape(args), error)
            if self.alike:
                alike = f"{problem}, and under parallel = 'zero2' all ranks run them alike"
                raise UncompiledError(alike, CURE) from error
            self.failures.note(self.model, problem)
        as_it_is: Any = self.layer._call_impl
        return as_it_is(*args, **kwargs)


def compile_backward_with_forward() -> None:
    """Otherwise a backward pass that cannot be compiled is an error in the middle of the backward pass."""
    torch._functorch.config.force_non_lazy_backward_lowering = True


def _problem(model: str, call: str, error: Exception) -> str:
    cause = getattr(error, "inner_exception", error)  # without the compiler's advice to those who mend it
    return (
        f"the {model}'s layers cannot be compiled for a pass of another form than those that were checked ({call}: "
        f"{reason(cause)})"
    )


def _of_compiler(error: Exception) -> bool:
    """True where the compiler gave up, and not what it compiled."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # a second that few trainings need

    return isinstance(error, TorchDynamoException | FailOnRecompileLimitHit)


def _shape(args: tuple[Any, ...]) -> str:
    states = next((one for one in args if isinstance(one, Tensor)), None)
    return "a call" if states is None else " x ".join(f"{size:,}" for size in states.shape)
