"""Three environments beside `.venv/`, for stages on GPUs without containers: `make setup-gpu` makes them.

`.venv-download`, `.venv-train` and `.venv-eval` have the locks of the images, `download-cpu`, `train-<flavour>` and
`eval-<flavour>`, and each stage runs in its own, as it does in images.
"""

import os
from pathlib import Path
from typing import get_args

from essence.engines.recipes import recipe
from essence.plan.experiment import PROJECT
from essence.settings import EnvironmentName

FOLDER_VARIABLE = "ESSENCE_ENVIRONMENTS"
LOCK = "essence-lock.txt"


def environment_folder(name: EnvironmentName) -> Path:
    """Where an environment is: `.venv-train` of the project, or of the folder that ESSENCE_ENVIRONMENTS names."""
    return Path(os.environ.get(FOLDER_VARIABLE) or PROJECT).absolute() / f".venv-{name}"


def environment_python(name: EnvironmentName) -> Path:
    """The Python of an environment of its own, made or not."""
    return environment_folder(name) / "bin" / "python"


def are_there(flavour: str) -> bool:
    """True where all three environments are, each from the lock that the project has now for a flavour."""
    names: tuple[EnvironmentName, ...] = get_args(EnvironmentName)
    return all(_is_of(name, recipe(name, flavour).lock) for name in names)


def _is_of(name: EnvironmentName, lock: Path) -> bool:
    """The lock is copied last, so one whose making was cut off has none."""
    installed = environment_folder(name) / LOCK
    return environment_python(name).is_file() and installed.is_file() and installed.read_bytes() == lock.read_bytes()
