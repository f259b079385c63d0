"""The locks hold what pyproject.toml asks for, every version with its hash, and name no host and no folder."""

import importlib
import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from essence.commands import lock_requirements
from essence.commands.lock import CHECKED, python_of
from essence.commands.lock_requirements import conflicts
from essence.engines import FLAVOURS
from essence.engines.recipes import recipe
from essence.record.third_party import OPTIONAL, third_party_imports
from essence.settings import EnvironmentName
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
EXTRAS["cpu-linux-aarch64"] = EXTRAS["cpu"]
OWN_INPUT = ("bootstrap", "crate", "peers")
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
    for name in ("transformers", "torch", "safetensors", "tokenizers", "numpy"):
        assert locked("train-cuda")[name] == locked("eval-cuda")[name], RENEW
        assert locked("train-cpu")[name] == locked("eval-cpu")[name] <= locked("cpu")[name], RENEW


@pytest.mark.parametrize("layer", ["dev", "peers", "vllm-cpu", "download-cpu", "train-cpu", "eval-cpu"])
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


OVERRIDDEN = {
    "vllm-cpu": {"mistral-common numpy", "vllm-cpu setuptools", "xgrammar triton"}
    | {f"vllm-cpu {name}" for name in ("torchaudio", "torchcodec", "torchvision")},
    "eval-cuda": {"mistral-common numpy", "vllm setuptools"},
}
"""Who requires what otherwise: the bounds that locks/override-*.txt takes away on purpose."""


@pytest.mark.parametrize("name", CHECKED)
def test_a_lock_holds_what_its_packages_require_of_each_other(name: str) -> None:
    found = {re.sub(r"^(\S+) \S+ requires ([a-z0-9-]+).*", r"\1 \2", one) for one in conflicts(name, python_of(name))}
    assert found == OVERRIDDEN.get(name, set()), conflicts(name, python_of(name))


def test_numba_which_vllm_imports_and_numpy_agree() -> None:
    assert not [one for one in conflicts("eval-cuda", "3.12") if one.startswith("numba")]


def test_a_lock_of_packages_that_refuse_each_other_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba 0.65 beside numpy 2.5, as an override that names no upper bound once locked them; and one taken away."""
    text = (LOCKS / "eval-cuda.txt").read_text(encoding="utf-8")
    recorded = json.loads((LOCKS / "requirements.json").read_text(encoding="utf-8"))
    newer = text.replace("numpy==2.4.6 ", "numpy==2.5.5 ").replace("\nllvmlite==", "\nllvmlite-of-another-name==")
    version = next(iter(locked("eval-cuda")["llvmlite"]))
    recorded |= {"numpy==2.5.5": [], f"llvmlite-of-another-name=={version}": []}
    (tmp_path / "broken.txt").write_text(newer, encoding="utf-8")
    (tmp_path / "requirements.json").write_text(json.dumps(recorded), encoding="utf-8")
    monkeypatch.setattr(lock_requirements, "LOCKS", tmp_path)
    monkeypatch.setattr(lock_requirements, "FILE", tmp_path / "requirements.json")
    said = "\n".join(conflicts("broken", "3.12"))
    assert re.search(r"numba 0.65.0 requires numpy\S*<2.5\S*, locked: 2.5.5", said)
    assert re.search(r"numba 0.65.0 requires llvmlite\S+, locked: None", said)


IMAGE_LOCKS = [(environment, flavour) for environment in ("train", "eval") for flavour in FLAVOURS]
OF_MODULE = {"vllm": "vllm"}
"""The environment of the tests may hold its CPU build, whose distribution has another name."""


@pytest.mark.parametrize(("environment", "flavour"), [("download", "cpu"), *IMAGE_LOCKS])
def test_what_a_stage_imports_is_in_the_lock_of_its_environment(environment: EnvironmentName, flavour: str) -> None:
    """And in the version in which these tests import it by its full name."""
    image, here = locked(recipe(environment, flavour).lock.stem), importlib.metadata.packages_distributions()
    for module, importers in third_party_imports(environment).items():
        top = module.split(".")[0]
        name = canonicalize_name(OF_MODULE.get(top) or here[top][0])
        if name not in image and top in OPTIONAL and flavour == "cpu":
            continue
        assert name in image, f"{module} ({', '.join(importers)}): not in {environment}-{flavour}.txt"
        if top not in OF_MODULE:
            importlib.import_module(module)
            assert {version.public for version in image[name]} == {Version(importlib.metadata.version(name)).public}, (
                f"{module} is tried here in another version than {environment}-{flavour}.txt has"
            )


def test_an_import_inside_a_function_counts_and_one_for_types_alone_does_not() -> None:
    imports = third_party_imports("eval")
    assert imports["vllm"] == ["essence.evaluation.decoders.vllm"] and "deepspeed" not in imports
    assert "docker" not in third_party_imports("train") and "torch" not in third_party_imports("download")
