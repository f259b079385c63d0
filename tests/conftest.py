"""What several test files need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from shared import Shared

# Other work on the machine makes an example slow; how fast things are is measured in bench/, not here.
hypothesis_settings.register_profile("essence", deadline=None)
hypothesis_settings.load_profile("essence")

pytest_plugins = ["parallel_plan", "containers", "slurm_node"]
"""How tests are dealt to processes, and the fixtures of the engines."""


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the public test data: $ESSENCE_TEST_ASSETS, else ../shared/assets beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "assets"
    folder = Path(os.environ.get("ESSENCE_TEST_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder} does not exist (set ESSENCE_TEST_ASSETS)")
    return folder


INVOKE = Path(sys.executable).with_name("invoke")
PROJECT = Path(__file__).resolve().parents[1]


def command_line(*arguments: str) -> list[str]:
    """An invoke command line of the environment that runs the tests."""
    return [str(INVOKE), *arguments]


def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an invoke command in the project, as a person would."""
    return subprocess.run(command_line(*arguments), cwd=PROJECT, capture_output=True, text=True, timeout=600)


def required(what: str) -> bool:
    """Whether a check that cannot run here must fail instead of being skipped ($ESSENCE_REQUIRE, comma separated)."""
    return what in os.environ.get("ESSENCE_REQUIRE", "").split(",")


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """The folder of this test run: below that of pytest, which is the parent of each parallel process's own."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if hasattr(request.config, "workerinput") else own
    folder = base / "shared"
    folder.mkdir(exist_ok=True)
    return Shared(folder)


MICRO = Path(__file__).with_name("micro.toml")


@pytest.fixture(scope="session")
def micro(shared: Shared) -> Path:
    """A finished, undisturbed run directory of the small matrix, for all processes; not to be changed."""

    def reproduce(runs: Path) -> str:
        done = invoke("reproduce", str(MICRO), "--runs", str(runs))
        assert done.returncode == 0, done.stdout + done.stderr
        return str(runs)

    return Path(shared.once("micro", reproduce))
