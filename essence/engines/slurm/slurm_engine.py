"""`invoke run --engine slurm`: the jobs of what is left, queued, or with `--dry-run` printed as a shell text."""

import json
import shlex
import sys

from rich.console import Console

from essence.commands.options import select
from essence.engines.engine import fetches, surroundings
from essence.engines.recipes import ImageRecipe, check_decoder, recipe
from essence.engines.run import Options, Run
from essence.engines.runner import make_spec
from essence.engines.sif_files import checked_sif, known_sif
from essence.engines.slurm.job_text import Job, batch_text, submit_text
from essence.engines.slurm.site import Site, load_site
from essence.errors import MachineError
from essence.plan.experiment import PROJECT
from essence.plan.stage_plan import PlannedStage
from essence.record.facts import code_facts

DEFAULT_SITE = "generic"


def run_on_slurm(words: Options, whole: bool, dry_run: bool, as_json: bool, console: Console) -> int:
    """Queue what is left and end, or print it; the exit code."""
    site = load_site(words.site or DEFAULT_SITE)
    selection = select(words, baselines=whole)
    if dry_run:
        return print_jobs(selection, site, as_json)
    from essence.engines.slurm.submit import queue_left

    return queue_left(selection, site, whole, as_json, console)


def print_jobs(selection: Run, site: Site, as_json: bool) -> int:
    """Print the jobs; nothing is checked but the input, nothing is written."""
    jobs = [(job, batch_text(job, site)) for job in planned_jobs(selection, site)]
    if as_json:
        told = [
            {"id": j.surroundings.stage_id, "title": j.surroundings.title, "after": j.after, "text": t} for j, t in jobs
        ]
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write(submit_text(jobs) + _about(selection, len(jobs)))
    return 0


def planned_jobs(selection: Run, site: Site, check: bool = False) -> list[Job]:
    """A job for each stage that is left and needs no network, once for all cells that share it.

    With `check` the images must be there and be those of this state of the project (MachineError).
    """
    code, _ = code_facts(PROJECT)
    left = {stage.id: stage for stage in selection.left() if not fetches(stage)}
    check_decoder(list(left.values()), selection.flavour)
    recipes = {identifier: image_recipe(stage, selection) for identifier, stage in left.items()}
    facts = {image: image_facts(image, site, check) for image in set(recipes.values())}
    return [
        Job(
            surroundings(stage, selection.run_directory),
            make_spec(stage, code, facts[recipes[stage.id]]),
            site.image(recipes[stage.id]),
            tuple(dict.fromkeys(identifier for identifier in stage.inputs.values() if identifier in left)),
        )
        for stage in left.values()
    ]


def image_recipe(stage: PlannedStage, selection: Run) -> ImageRecipe:
    """The image that a stage runs in."""
    return recipe(stage.runs_in, selection.flavour)


def image_facts(image: ImageRecipe, site: Site, check: bool) -> dict[str, str | None]:
    """What is known of an image before a job runs: of a SIF its hash and what it was made of, if it lies here."""
    file = site.image_file(image)
    if check and file and not file.is_file():
        made = (
            f"make sif FLAVOUR={image.flavour} and copy it there"
            if site.container == "apptainer"
            else f"enroot import --output {shlex.quote(str(file))} dockerd://{image.name}, after make images "
            f"FLAVOUR={image.flavour}"
        )
        raise MachineError(
            f"{file}: no such file, the image for {image.environment} as the site file says (sif_folder, images); "
            f"make it with {made}"
        )
    sif = None
    if file and site.container == "apptainer":
        cure = f"make it anew: make images sif FLAVOUR={image.flavour}"
        sif = checked_sif(file, image, cure) if check else known_sif(file)
    return {
        "engine": site.container,
        "engine_version": None,
        "digest": sif.config_digest if sif else None,
        "base_digest": image.base.split("@")[1],
        "sif_sha256": sif.sha256 if sif else None,
    }


def _about(selection: Run, jobs: int) -> str:
    lines = [f"# {selection.name}: {jobs} jobs (site {selection.words.site or DEFAULT_SITE})"]
    if downloads := sum(fetches(stage) for stage in selection.left()):
        fetch = selection.words.fetching()
        lines.append(f"# first, where there is a network: {downloads} downloads: {fetch}")
    return "\n".join(lines) + "\n"
