"""Where a compiled layer meets a call that it cannot be compiled for, the training goes on with the layer as it is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
from functorch.compile import make_boxed_func
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from essence.distill import compiled_layers, trainer
from essence.distill.compiled_layers import compile_layer, settle_layers
from essence.distill.late_graphs import LateFailures
from support.small_training import model, run

WIDTH_OF_A_SIZE = (5, 11)
"""Tokens of the checked rows that make a packed width of 16, which is the hidden size too: every other width is new."""
TOLERANCE = 2e-5


class Planted:
    """A compiler that fails once it is told to: in the forward or in the backward pass."""

    def __init__(self, part: str) -> None:
        self.part, self.broken, self.faulty, self.tries, self.runs = part, False, False, 0, 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        compiled: Callable[[Any, Any], Any] = aot_autograd(
            fw_compiler=self._compiler("forward"), bw_compiler=self._compiler("backward")
        )
        return compiled(graph, inputs)

    def _compiler(self, part: str) -> Callable[[Any, Any], Any]:
        def made(graph: Any, _: Any) -> Any:
            if self.broken and part == self.part:
                self.tries += 1
                raise RuntimeError("no kernel for this one")

            def runs(*arguments: Any) -> Any:
                if self.faulty:
                    raise ArithmeticError("a fault of the kernel itself")
                self.runs += 1
                return graph.forward(*arguments)

            return make_boxed_func(runs)

        return made


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TwoWeights(torch.nn.Module):
    """PyTorch's own modules are not compiled alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight


def guarded(monkeypatch: pytest.MonkeyPatch, compiler: Any) -> tuple[TwoWeights, LateFailures]:
    """A compiled layer that was called with two dimensions."""
    monkeypatch.setattr(compiled_layers, "COMPILER", compiler)
    layer, failures = TwoWeights(), LateFailures()
    compile_layer(layer)
    failures.guard("student", [layer])
    layer(torch.ones(3, 2)).sum().backward()
    return layer, failures


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_call_that_cannot_be_compiled_runs_as_it_is(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Planted(part)
    layer, failures = guarded(monkeypatch, compiler)
    assert compiler.runs == 2 and failures.why == {}
    compiler.broken = True
    for _ in range(2):  # of three dimensions, which are new
        layer.weight.grad = None
        layer(torch.ones(3, 2, 2)).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.tolist() == [6.0, 6.0]
    assert compiler.tries == 1 and compiler.runs == 2, "tried once, and nothing of it was used"
    layer(torch.ones(5, 2)).sum().backward()
    assert compiler.runs == 4, "what was compiled before goes on"
    assert failures.why == {
        "student": "the student's layers cannot be compiled for a pass of another form than those that were checked "
        "(3 x 2 x 2: no kernel for this one): such passes run as they are"
    }
    said = [record.getMessage() for record in caplog.records if record.name == "essence.distill.late_graphs"]
    assert said == list(failures.why.values())


def test_a_fault_of_what_was_compiled_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Planted("forward")
    layer, failures = guarded(monkeypatch, compiler)

    compiler.faulty = True
    with pytest.raises(ArithmeticError, match="a fault of the kernel itself"):
        layer(torch.ones(4, 2))
    assert failures.why == {}


def test_a_training_goes_on_where_a_backward_pass_cannot_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the recomputation of activations, too."""
    compiler = Planted("backward")

    def settled(*given: Any) -> Any:
        found = settle_layers(*given)
        compiler.broken = True
        return found

    monkeypatch.setattr(compiled_layers, "CHECKED_LENGTHS", WIDTH_OF_A_SIZE)
    monkeypatch.setattr(compiled_layers, "COMPILER", compiler)
    monkeypatch.setattr(trainer, "settle_layers", settled)
    teacher = model(1, hidden=24)
    result = run(tmp_path / "compiled", model(0), teacher, compile_layers=True, recomputed=True, packing=True)
    assert result.layers.student and result.layers.teacher and compiler.tries == 1
    (why,) = result.layers.fell_back
    assert why.startswith("the student's layers cannot be compiled for a pass of another form") and "x 16: " in why
    eager = run(tmp_path / "eager", model(0), model(1, hidden=24), packing=True)
    weights, expected = load_file(result.last_weights), load_file(eager.last_weights)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0.0, atol=TOLERANCE)
