"""What several test files need."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the public test data: $ESSENCE_TEST_ASSETS, else ../shared/assets beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "assets"
    folder = Path(os.environ.get("ESSENCE_TEST_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder} does not exist (set ESSENCE_TEST_ASSETS)")
    return folder
