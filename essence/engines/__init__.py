"""How stages are started: the same spec, whatever surrounds it."""

from collections.abc import Callable

from essence.engines.contract import Flavour, StartingEngine
from essence.engines.local import LocalEngine

STARTING: dict[str, Callable[[Flavour], StartingEngine]] = {"local": lambda _flavour: LocalEngine()}
"""Engine name -> how to make it for a flavour of the images."""
ENGINES = tuple(STARTING)
FLAVOURS = ("cuda", "cpu", "paper")
