"""The self-test of an environment: what it imports, what is broken, and what only needs a driver."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from essence.record.third_party import third_party_imports
from essence.stages.self_test import DEVICE


def run(*words: str, modules: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | ({"PYTHONPATH": str(modules)} if modules else {})
    command = [sys.executable, "-m", "essence.stages.self_test", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder before all others on the path, whose httpx2 cannot be imported."""
    (tmp_path / "httpx2.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
    return tmp_path


def test_each_module_that_a_stage_imports_is_a_line() -> None:
    done = run("download")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == list(third_party_imports("download"))
    assert ", lock " in lines[0]


def test_a_package_that_is_broken_fails_with_its_reason(broken: Path) -> None:
    done = run("download", modules=broken)
    assert done.returncode == 1
    assert "FAILED httpx2" in done.stdout and "No module named 'no_such_module_at_all'" in done.stdout
    assert "huggingface_hub: " in done.stdout, "the others are tried, too"


LOADED = (
    "import sys; from essence.record import facts, third_party; print(*{name.split('.')[0] for name in sys.modules})"
)


def test_a_package_that_the_self_test_itself_needs_is_told_as_all_others_are(tmp_path: Path) -> None:
    """Each package that the kit's own modules bring in, broken one after the other."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    packages = {name for name in done.stdout.split() if not name.startswith("_")} - {
        *sys.stdlib_module_names,
        "essence",
    }
    assert {"psutil", "pydantic", "pydantic_core"} <= packages
    for package in packages:
        folder = tmp_path / package
        folder.mkdir()
        (folder / f"{package}.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
        done = run("download", modules=folder)
        assert done.returncode == 1 and not done.stderr, done.stderr
        assert "FAILED p" in done.stdout and "No module named 'no_such_module_at_all'" in done.stdout


@pytest.mark.parametrize(
    "said",
    [
        "libcuda.so.1: cannot open shared object file: No such file or directory",
        "libnvidia-encode.so.1: cannot open shared object file: No such file or directory",
        "Found no NVIDIA driver on your system.",
    ],
)
def test_a_package_that_asks_for_the_driver_is_told_apart_from_a_broken_one(tmp_path: Path, said: str) -> None:
    (tmp_path / "httpx2.py").write_text(f"raise ImportError({said!r})\n", encoding="utf-8")
    done = run("download", modules=tmp_path)
    if DEVICE.exists():
        assert done.returncode == 1 and "FAILED httpx2" in done.stdout
    else:
        assert done.returncode == 0 and "httpx2: needs a driver, which this machine lacks (ImportError" in done.stdout


@pytest.mark.parametrize("library", ["libcudart.so.13", "libcudnn.so.9", "libnvrtc.so.13", "libstdc++.so.6"])
def test_a_library_that_the_wheels_bring_is_no_driver(tmp_path: Path, library: str) -> None:
    said = f"{library}: cannot open shared object file: No such file or directory"
    (tmp_path / "httpx2.py").write_text(f"raise OSError({said!r})\n", encoding="utf-8")
    done = run("download", modules=tmp_path)
    assert done.returncode == 1 and "FAILED httpx2 (" in done.stdout and f"OSError: {library}" in done.stdout


@pytest.mark.parametrize("words", [("nothing",), ("train", "eval")])
def test_another_environment_is_one_sentence(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2 and done.stderr.startswith("which environment: download, train, eval (typed: ")


@pytest.mark.vllm
def test_vllm_is_imported_without_its_decoder_of_videos(tmp_path: Path) -> None:
    """That one cannot be imported without the driver; the kit reads no videos, and vLLM imports it where it does."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: locks/install.sh cpu dev vllm")
    said = "Failed to load NVENC library: libnvidia-encode.so.1: cannot open shared object file"
    (tmp_path / "PyNvVideoCodec.py").write_text(f"raise RuntimeError({said!r})\n", encoding="utf-8")
    done = run("eval", modules=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nvllm: vllm" in done.stdout and "needs a driver" not in done.stdout
