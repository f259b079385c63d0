"""What an experiment would bring in and cannot."""

from pathlib import Path

from essence.plan.catalogue import missing
from essence.plan.experiment import load
from essence.plan.stage_plan import make_plan
from essence.settings import DownloadSettings


def environment(stage: str) -> dict[str, str]:
    return {"lock_sha256": "0" * 64}


def reasons(file: Path) -> list[str]:
    """Load and plan the experiment; what of its sources cannot be brought in."""
    loaded = load(str(file))
    plan = make_plan(loaded, loaded.cells(), environment, baselines=True)
    sources = [s.settings.source for s in plan.stages.values() if isinstance(s.settings, DownloadSettings)]
    return [str(error) for source in sources if (error := missing(source))]
