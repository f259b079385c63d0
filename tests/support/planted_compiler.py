"""A compiler for PyTorch's layers that runs what it is given as it is, until it fails on purpose."""

from collections.abc import Callable
from typing import Any

from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd


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
