"""The options of a command line, and the cells and stages that they select."""

import shlex
from dataclasses import dataclass, replace

from essence.engines.engine import Engine
from essence.errors import ExperimentError
from essence.plan.experiment import Experiment
from essence.plan.stage_plan import Plan, PlannedStage
from essence.record.local_sources import LocalSources
from essence.record.run_directory import RunDirectory

AXES = ("dataset", "pair", "lsp", "span", "sections", "protocol", "seed")
OF_THE_SITE = ("account", "partition", "sif_folder")
"""Keys of a site file that have an option of their own: they differ from user to user of one cluster."""


@dataclass(frozen=True)
class Options:
    """What was typed; None = not given."""

    experiment: str | None = None
    lsp: float | None = None
    dataset: str | None = None
    pair: str | None = None
    span: str | None = None
    sections: str | None = None
    protocol: str | None = None
    seed: int | None = None
    only: str | None = None
    engine: str | None = None
    """None = chosen for what the experiment asks for and what answers here (`engines/choice.py`)."""
    flavour: str | None = None
    gpus: int | None = None
    """Of one stage, instead of what the experiment says."""
    pins: str | None = None
    runs: str | None = None
    site: str | None = None
    """The cluster, for an engine that queues jobs on one."""
    account: str | None = None
    partition: str | None = None
    sif_folder: str | None = None
    """As in the site file, whose value it replaces."""
    accept_earlier: bool = False
    """Take finished stages of earlier code where settings, inputs and environment are equal."""

    def axes(self) -> dict[str, float | str]:
        """Axis -> value; ExperimentError for a proportion that is none."""
        if self.lsp is not None and not 0.0 < self.lsp <= 1.0:
            raise ExperimentError(
                f"--lsp {self.lsp:g}: must be a number greater than 0 and at most 1, the share of tokens kept "
                "(half is 0.5)"
            )
        return {axis: value for axis in AXES if (value := getattr(self, axis)) is not None}

    def of_the_site(self) -> dict[str, str]:
        """Key of the site file -> the value that was typed for it."""
        return {key: value for key in OF_THE_SITE if (value := getattr(self, key)) is not None}

    def without_site(self) -> "Options":
        """The same, of no cluster."""
        return replace(self, site=None, account=None, partition=None, sif_folder=None)

    def typed(self, whole: bool, command: str = "run") -> str:
        """The command as it was typed, to be repeated in a message; or another one with the same words."""
        names = [*AXES, "only", "gpus", "pins", "runs"]
        start = ["invoke", "reproduce", str(self.experiment)] if whole else ["invoke", command]
        for name in names if whole else ["experiment", *names]:
            if (value := getattr(self, name)) is not None:
                start += [f"--{name}", str(value)]
        start += ["--engine", self.engine] if self.engine else []
        start += ["--flavour", self.flavour] if self.flavour else []
        for name in ("site", *OF_THE_SITE):
            if (value := getattr(self, name)) is not None:
                start += [f"--{name.replace('_', '-')}", value]
        if self.accept_earlier and command == "run":
            start.append("--accept-earlier")
        return shlex.join(start)


@dataclass(frozen=True)
class Run:
    """The chosen cells with their plan, and where it runs."""

    words: Options
    engine: Engine
    run_directory: RunDirectory
    loaded: Experiment
    plan: Plan
    wanted: list[PlannedStage]
    local: LocalSources
    why: str = ""
    """Why it is this engine, where none was typed."""
    evaluated: bool = False
    """Whether it is of `invoke evaluate`, whose model no other command knows of."""

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def flavour(self) -> str:
        """Of the images, where there are any."""
        return flavour_of(self.words, self.loaded)

    @property
    def contained(self) -> bool:
        """True when stages run in images."""
        return self.engine.contained

    @property
    def proves(self) -> bool:
        """Whether it is a proof, of `invoke prove`."""
        return any(stage.stage == "prove_training" for stage in self.wanted)

    def fetching(self) -> str:
        """The command that brings in what the cells need from a network; jobs have none, so it runs here."""
        words = replace(self.words.without_site(), only=None, gpus=None)
        if self.engine.queue:
            words = replace(words, engine=None, flavour=None)
        return words.typed(whole=False, command="download")

    def left(self) -> list[PlannedStage]:
        return [stage for stage in self.wanted if not self.run_directory.stage(stage.id).done]


def flavour_of(words: Options, loaded: Experiment) -> str:
    """What asks for no GPU runs in the images without CUDA."""
    return words.flavour or ("cuda" if loaded.experiment.resources.gpus else "cpu")
