"""`invoke run --engine slurm --dry-run`: the jobs of what is left, as a shell text that queues them."""

import json
import sys
from dataclasses import replace

from essence.commands.selection import Selection, Words, select
from essence.engines.images import recipe
from essence.engines.site import Site, load_site
from essence.engines.slurm_text import Job, batch_text, submit_text
from essence.engines.surroundings import fetches, surroundings
from essence.errors import ExperimentError
from essence.experiment import PROJECT
from essence.plan import PlannedStage
from essence.record.environment import code_facts
from essence.runner import make_spec

DEFAULT_SITE = "generic"


def print_jobs(words: Words, whole: bool, dry_run: bool, as_json: bool) -> int:
    """Print the jobs; ExperimentError where they were to be submitted, which the user does with what is printed."""
    if not dry_run:
        typed = words.typed(whole)
        raise ExperimentError(
            f"--engine slurm: only prints the jobs; queue them yourself on a login node: {typed} --dry-run > jobs.sh, "
            "then bash jobs.sh (docs/cluster.md)"
        )
    site = load_site(words.site or DEFAULT_SITE)
    # The same image has the same identity under every container engine, and so have the stages that run in it.
    selection = select(replace(words, engine="docker"), baselines=whole)
    jobs = [(job, batch_text(job, site)) for job in planned_jobs(selection, site)]
    if as_json:
        told = [
            {"id": j.surroundings.stage_id, "title": j.surroundings.title, "after": j.after, "text": t} for j, t in jobs
        ]
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write(submit_text(jobs) + _about(selection, words, whole, len(jobs)))
    return 0


def planned_jobs(selection: Selection, site: Site) -> list[Job]:
    """A job for each stage that is left and needs no network, once for all cells that share it."""
    code, _ = code_facts(PROJECT)
    left = {stage.id: stage for stage in selection.left() if not fetches(stage)}
    return [
        Job(
            surroundings(stage, selection.run_directory),
            make_spec(stage, code, image_facts(stage, selection, site)),
            tuple(dict.fromkeys(identifier for identifier in stage.inputs.values() if identifier in left)),
        )
        for stage in left.values()
    ]


def image_facts(stage: PlannedStage, selection: Selection, site: Site) -> dict[str, str | None]:
    """What is known of the image before the job runs: the base that its Dockerfile names."""
    flavour = selection.words.flavour or ("cuda" if selection.loaded.experiment.resources.gpus else "cpu")
    base = recipe(stage.runs_in, flavour).base.split("@")[1]
    unknown = dict.fromkeys(("engine_version", "digest", "sif_sha256"))
    return {"engine": site.container, "base_digest": base, **unknown}


def _about(selection: Selection, words: Words, whole: bool, jobs: int) -> str:
    lines = [f"# {selection.name}: {jobs} jobs (site {words.site or DEFAULT_SITE})"]
    if downloads := sum(fetches(stage) for stage in selection.left()):
        fetch = replace(words, engine="local", flavour=None, site=None, only="download").typed(whole)
        lines.append(f"# first, where there is a network: {downloads} downloads: {fetch}")
    return "\n".join(lines) + "\n"
