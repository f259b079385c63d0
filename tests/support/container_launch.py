"""A stage as an engine starts it in a container."""

import os
from dataclasses import replace
from pathlib import Path

from essence.engines.engine import Launch, Mount
from essence.plan.cells import part
from essence.plan.experiment import load
from essence.record.run_directory import StageFolder
from essence.settings import Resources

CALLER = 12345
"""A uid that no image has in its passwd."""
RESOURCES = Resources(**part(load("tiny").experiment.resources, Resources))


def surroundings_of(tmp_path: Path, **changes: object) -> Launch:
    """A stage with one input, as the caller with uid CALLER starts it."""
    tmp_path.chmod(0o755)
    folder, read = tmp_path / "own", tmp_path / "input"
    for place in (folder, read):
        place.mkdir(exist_ok=True)
    (read / "rows.txt").write_text("rows")
    if os.getuid() == 0:
        os.chown(folder, CALLER, CALLER)
    plain = Launch(
        stage="train",
        stage_id="train-0123",
        title="train a cell",
        environment="download",  # the smallest image
        folder=StageFolder(folder),
        mounts=(Mount(read, read, True), Mount(folder, folder, False)),
        network=False,
        resources=RESOURCES,
        variables={"OMP_NUM_THREADS": "1"},
        user=(CALLER, CALLER),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]
