"""The Slurm engine: each stage is a job in a container of the site's kind, and goes on when the command has ended."""

import functools
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from essence.engines.engine import Engine, Launch, fetches, surroundings
from essence.engines.machine import check_images_platform
from essence.engines.recipes import ImageRecipe, check_decoder, recipe
from essence.engines.requirement import Requirement, asked
from essence.engines.runner import make_spec
from essence.engines.sif_files import SifRecord, checked_sif, known_sif
from essence.engines.slurm import queue
from essence.engines.slurm.job_text import Job, batch_text
from essence.engines.slurm.queued_stage import QueuedStage
from essence.engines.slurm.refusals import refusal
from essence.engines.slurm.site import Site, load_site
from essence.engines.slurm.submit import Submission
from essence.errors import MachineError, SchedulerError
from essence.plan.experiment import PROJECT
from essence.plan.stage_plan import PlannedStage
from essence.record.facts import code_facts
from essence.record.live_records import read_whole_spec
from essence.record.run_directory import RunDirectory
from essence.settings import EnvironmentName, StageName

DEFAULT_SITE = "generic"
EXPECTED_S: dict[StageName, float] = {"prove_training": 600.0, "prove_decoding": 600.0}
"""Of stages that take about as long everywhere."""


class SlurmEngine(Engine):
    """Jobs on the cluster that a site file describes."""

    name = "slurm"

    def __init__(self, flavour: str, site: str = DEFAULT_SITE, typed: Mapping[str, str] | None = None) -> None:
        self.flavour = flavour
        self.site_name, self.site = site, load_site(site, typed or {})

    @property
    def queue(self) -> "SlurmEngine":
        return self

    def environment(self, name: EnvironmentName) -> dict[str, str]:
        """The same image has the same identity under every engine, and so have the stages that run in it."""
        return recipe(name, self.flavour).identity()

    def image(self, name: EnvironmentName) -> dict[str, str | None]:
        """What is known of an image before a job runs: of a SIF its hash and what it was made of, if it is here."""
        image = recipe(name, self.flavour)
        file = self.site.image_file(image)
        sif = self._sif(file, image) if file and self.site.container == "apptainer" else None
        return {
            "engine": self.site.container,
            "engine_version": None,
            "digest": sif.config_digest if sif else None,
            "base_digest": image.base.split("@")[1],
            "sif_sha256": sif.sha256 if sif else None,
        }

    def _sif(self, file: Path, image: ImageRecipe) -> SifRecord | None:
        return self._checked.get(image.environment) or known_sif(file)

    @functools.cached_property
    def _checked(self) -> dict[str, SifRecord]:
        """Records of SIFs that were looked into: where others keep them, they may not be written down."""
        return {}

    def check(self, stages: list[PlannedStage]) -> None:
        """MachineError for an image that is absent or of another state of the project, SchedulerError without Slurm."""
        check_images_platform(f"engine {self.name}")
        check_decoder(stages, self.flavour)
        for name in sorted({stage.runs_in for stage in stages if not fetches(stage)}):
            self._check_image(recipe(name, self.flavour))
        queue.queue()

    def _check_image(self, image: ImageRecipe) -> None:
        file = self.site.image_file(image)
        if file and not file.is_file():
            raise MachineError(
                f"{file}: no such file, the image for {image.environment} as the site file says (sif_folder, images)",
                f"make it with {_making(image, file, self.site)}",
            )
        if file and self.site.container == "apptainer":
            cure = f"build it again: make images sif FLAVOUR={image.flavour}"
            self._checked[image.environment] = checked_sif(file, image, cure)

    def requirements(
        self, stages: list[PlannedStage], run_directory: RunDirectory, expected_s: Mapping[str, float]
    ) -> Iterator[Requirement]:
        """The images are where the site file says, Slurm answers, and would take a job of each kind of stage."""
        platform = asked(f"engine {self.name}", functools.partial(check_images_platform, f"engine {self.name}"))
        if not platform.met:
            yield platform
            return
        for name in sorted({stage.runs_in for stage in stages if not fetches(stage)}):
            yield asked(f"image {name}", functools.partial(self._check_image, recipe(name, self.flavour)))
        slurm = asked("Slurm", lambda: bool(queue.queue()))
        yield slurm
        if slurm.met:
            launches = self.launches(stages, run_directory)
            launches.sort(key=lambda launch: expected_s.get(launch.stage_id, math.inf))
            # Of each kind the last, which asks for the longest time.
            for stage, launch in {launch.stage: launch for launch in launches}.items():
                yield asked(f"a {stage} job", self._taken(self.job(launch, expected_s.get(launch.stage_id))))

    def _taken(self, job: Job) -> Callable[[], object]:
        def ask() -> None:
            try:
                queue.accepts(batch_text(job, self.site))
            except SchedulerError as error:
                raise refusal(self.site, self.site_name, job, error) from None

        return ask

    def launches(self, stages: list[PlannedStage], run_directory: RunDirectory) -> list[Launch]:
        """What surrounds each stage that needs no network, with its spec, which the batch text carries."""
        check_decoder(stages, self.flavour)
        code, _ = code_facts(PROJECT)
        return [
            replace(surroundings(stage, run_directory), spec=make_spec(stage, code, self.image(stage.runs_in)))
            for stage in stages
            if not fetches(stage)
        ]

    def job(self, launch: Launch, expected_s: float | None = None) -> Job:
        """The job of a stage; one that is expected to take so long asks for a time that fits."""
        spec = launch.spec or read_whole_spec(launch.folder.spec)
        image = self.site.image(recipe(launch.environment, self.flavour))
        known = EXPECTED_S.get(launch.stage) if expected_s is None else expected_s
        return Job(launch, spec, image, launch.inputs, known)

    def render(self, surroundings: Launch) -> str:
        """The batch text."""
        return batch_text(self.job(surroundings), self.site)

    def submission(self) -> Submission:
        """What one command queues, with the queue as it is now."""
        return Submission(self.site, self.site_name, queue.queue())

    def start(self, surroundings: Launch) -> QueuedStage:
        """Queue the job of a stage whose inputs are done, or take over the one that is in the queue."""
        submission = self.submission()
        submission.add(self.job(surroundings))
        return QueuedStage(submission.jobs[surroundings.stage_id], surroundings)


def _making(image: ImageRecipe, file: Path, site: Site) -> str:
    """How the file of an image is made."""
    if site.container == "apptainer":
        return f"make sif FLAVOUR={image.flavour} and copy it there"
    return (
        f"enroot import --output {shlex.quote(str(file))} dockerd://{image.name}, after make images "
        f"FLAVOUR={image.flavour}"
    )
