"""What jobs need of a cluster, as `invoke doctor --engine slurm` says it: images, Slurm, what the site asks for."""

from collections.abc import Callable, Iterator

from essence.commands.requirements import Check, asked
from essence.commands.selection import Selection
from essence.commands.slurm import DEFAULT_SITE, image_facts, image_recipe, planned_jobs
from essence.commands.submit import refusal_sentence
from essence.engines import scheduler
from essence.engines.images import ImageRecipe
from essence.engines.site import Site
from essence.engines.slurm_text import Job, batch_text
from essence.engines.surroundings import fetches
from essence.errors import SchedulerError


def cluster_checks(selection: Selection, site: Site) -> Iterator[Check]:
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
