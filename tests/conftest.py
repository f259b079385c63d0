"""Fixtures and settings for all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from support.project import MICRO, PROJECT, invoke
from support.shared import Shared

# Other work on the machine slows examples down; speed is measured in bench/, not here.
hypothesis_settings.register_profile("essence", deadline=None)
hypothesis_settings.load_profile("essence")

# The defaults of this machine must not reach the tests; a test of these variables sets them itself.
for name in ("ESSENCE_ENGINE", "ESSENCE_SITE"):
    os.environ.pop(name, None)
os.environ.setdefault("ESSENCE_ENVIRONMENTS", "/nonexistent")
# A shell that starts something in the background lets it ignore Ctrl-C, and so all that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Hundreds of processes are started: one that may not keep bytecode compiles all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# PyTorch's threads wait for each other without keeping a core busy, which tests beside them need; read when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

pytest_plugins = [
    *("support.parallel_plan", "support.containers", "support.image_registry"),
    *("support.slurm_node", "support.slurm_cluster"),
]
"""The distribution of tests over processes, and the fixtures of the engines."""


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the public test data: $ESSENCE_TEST_ASSETS, else ../shared/assets beside the project."""
    beside = PROJECT.parent / "shared" / "assets"
    folder = Path(os.environ.get("ESSENCE_TEST_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder} does not exist (set ESSENCE_TEST_ASSETS)")
    return folder


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """The folder of this test run, below the parent of the processes' own folders."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if hasattr(request.config, "workerinput") else own
    folder = base / "shared"
    folder.mkdir(exist_ok=True)
    return Shared(folder)


@pytest.fixture(scope="session")
def micro(shared: Shared) -> Path:
    """A finished, undisturbed run directory of the small matrix, for all processes; not to be changed."""

    def reproduce(runs: Path) -> str:
        done = invoke("reproduce", str(MICRO), "--runs", str(runs))
        assert done.returncode == 0, done.stdout + done.stderr
        return str(runs)

    return Path(shared.once("micro", reproduce))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs of the train stage, made here; not to be changed."""
    from support.stage_inputs import prepare  # imports PyTorch

    return prepare(tmp_path_factory.mktemp("inputs"))
