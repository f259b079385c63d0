"""What an engine offers. One kind starts stages and watches them; the other hands them to a scheduler and leaves."""

from dataclasses import dataclass
from typing import Protocol

from essence.engines.surroundings import Surroundings
from essence.plan import PlannedStage
from essence.settings import EnvironmentName

Flavour = str
"""Which locked versions an image holds: cuda, cpu or paper (`docker/bake.hcl`)."""


@dataclass(frozen=True)
class Ending:
    """How a stage's process ended."""

    code: int
    """Exit code; a negative one is the signal that ended it."""
    cause: str | None = None
    """One sentence when something outside the stage ended it, which the stage itself could not write down."""


class RunningStage(Protocol):
    """A stage that was started."""

    def poll(self) -> Ending | None:
        """None while it runs."""

    def stop(self) -> None:
        """Ask the stage to write what it needs and end."""

    def kill(self) -> None:
        """End the stage and all that it started at once; returns when it is gone."""


class Engine(Protocol):
    """What every engine tells."""

    @property
    def name(self) -> str: ...

    def environment(self, name: EnvironmentName) -> dict[str, str]:
        """Identity of an environment, part of every key; known without the engine being there."""

    def image(self, name: EnvironmentName) -> dict[str, str | None]:
        """What the manifest says of engine and image; group `image`."""

    def check(self, stages: list[PlannedStage]) -> None:
        """KitError when these stages cannot be started here: no engine, no image."""

    def render(self, surroundings: Surroundings) -> str:
        """The command as a person would type it; needs neither engine nor image."""


class StartingEngine(Engine, Protocol):
    """An engine that starts a stage and stays with it."""

    def start(self, surroundings: Surroundings) -> RunningStage:
        """Start a stage, or take over the one that a killed host left running."""
