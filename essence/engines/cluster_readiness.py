"""What jobs need of a cluster, as `invoke doctor --engine slurm` says it: images, Slurm, what the site asks for."""

from collections.abc import Callable, Iterator

from essence.engines.engine import fetches
from essence.engines.readiness import Requirement, asked
from essence.engines.recipes import ImageRecipe
from essence.engines.run import Run
from essence.engines.slurm import queue as scheduler
from essence.engines.slurm.job_text import Job, batch_text
from essence.engines.slurm.site import Site
from essence.engines.slurm.slurm_engine import DEFAULT_SITE, image_facts, image_recipe, planned_jobs
from essence.engines.slurm.submit import refusal_sentence
from essence.errors import SchedulerError


def cluster_checks(selection: Run, site: Site) -> Iterator[Requirement]:
    """Slurm answers, the images lie where the site file says, and a job of each kind of stage would be taken."""
    images = {image_recipe(stage, selection) for stage in selection.left() if not fetches(stage)}
    for image in sorted(images, key=lambda image: image.name):
        yield asked(f"image {image.environment}", _image(image, site))
    slurm = asked("Slurm", lambda: bool(scheduler.queue()))
    yield slurm
    if slurm.met:
        jobs = {job.surroundings.stage: job for job in planned_jobs(selection, site)}
        for stage, job in jobs.items():
            yield asked(f"a {stage} job", _taken(job, site, selection.words.site or DEFAULT_SITE))


def _image(image: ImageRecipe, site: Site) -> Callable[[], object]:
    return lambda: image_facts(image, site, check=True)


def _taken(job: Job, site: Site, name: str) -> Callable[[], object]:
    def ask() -> None:
        try:
            scheduler.accepts(batch_text(job, site))
        except SchedulerError as error:
            raise SchedulerError(refusal_sentence(site, name, job, str(error))) from None

    return ask
