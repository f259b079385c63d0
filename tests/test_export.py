"""One archive of a run: the same bytes each time, checked where nothing else is, and a valid RO-Crate."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import rocrate
from conftest import PROJECT, invoke, required

VALIDATOR_LOCK = PROJECT / "locks" / "crate.txt"
VOCABULARY = Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld"
URLS = ("https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run")


@pytest.fixture(scope="module")
def archive(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "micro.tar.gz"
    done = invoke("export", "--experiment", "micro", "--runs", str(micro), "--output", str(target))
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def unpacked(archive: Path, tmp_path: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / "micro"


def pack(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz") as packed:
        packed.add(folder, arcname=folder.name)
    return target


def test_the_same_run_gives_the_same_bytes(archive: Path, micro: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar.gz"
    assert invoke("export", "--experiment", "micro", "--runs", str(micro), "--output", str(again)).returncode == 0
    assert again.read_bytes() == archive.read_bytes()


def test_it_verifies_alone_and_says_what_it_does_not_hold(archive: Path, tmp_path: Path) -> None:
    alone = tmp_path / "mail.tar.gz"
    alone.write_bytes(archive.read_bytes())
    done = invoke("verify", str(alone), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"] and found["stages"] == 15, done.stdout
    assert any(line.startswith("train-") and "files of its output" in line for line in found["unchecked"])


def test_weights_and_data_of_others_are_left_out_and_listed(unpacked: Path) -> None:
    left = {entry["path"] for entry in json.loads((unpacked / "export.json").read_text())["left_out"]}
    assert any(path.endswith("best/model.safetensors") for path in left)
    assert not list(unpacked.rglob("*.safetensors")) and not list(unpacked.glob("stages/download-*/output"))
    for kept in ("samples.jsonl", "verdicts.jsonl", "metrics.jsonl", "report.html", "tiny.toml", "cpu.txt"):
        assert list(unpacked.rglob(kept)), kept


def test_weights_come_along_where_asked_for(micro: Path, tmp_path: Path) -> None:
    target = tmp_path / "whole.tar.gz"
    arguments = ("--experiment", "micro", "--runs", str(micro), "--output", str(target), "--weights")
    assert invoke("export", *arguments).returncode == 0
    with tarfile.open(target) as packed:
        assert [name for name in packed.getnames() if name.endswith("best/model.safetensors")]


def test_no_name_of_this_machine_is_in_the_archive_s_members(archive: Path) -> None:
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)


def test_a_changed_line_in_an_archive_is_named(unpacked: Path, tmp_path: Path) -> None:
    verdicts = next(unpacked.rglob("verdicts.jsonl"))
    verdicts.write_text(verdicts.read_text().replace("false", "true", 1))
    done = invoke("verify", str(pack(unpacked, tmp_path / "changed.tar.gz")))
    assert done.returncode == 1
    place = verdicts.relative_to(unpacked)
    assert f"{place}: content differs from its line in SHA256SUMS" in done.stdout
    assert f"{place}: content differs from its recorded sha256" in done.stdout


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_damaged_archive_is_one_sentence(archive: Path, tmp_path: Path, kept: float) -> None:
    damaged = tmp_path / "damaged.tar.gz"
    content = archive.read_bytes()
    damaged.write_bytes(content[: int(len(content) * kept)] or b"no archive")
    done = invoke("verify", str(damaged))
    assert done.returncode == 2 and f"{damaged}: damaged, or not an archive" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_export_is_one_sentence(tmp_path: Path) -> None:
    done = invoke("export", "--experiment", "tiny", "--runs", str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public validator, from its lock, in an environment of its own; the folder of its programs."""
    folder = tmp_path_factory.mktemp("validator") / "environment"
    uv = str(Path(sys.executable).with_name("uv"))
    variables = {**os.environ, "VIRTUAL_ENV": str(folder), "UV_NO_PROGRESS": "1"}
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    line = [uv, "pip", "sync", "--quiet", "--require-hashes", str(VALIDATOR_LOCK)]
    done = subprocess.run(line, env=variables, capture_output=True, text=True)
    if done.returncode and not required("crate"):
        pytest.skip(f"the RO-Crate validator cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.mark.parametrize("profile", ["ro-crate-1.1", "process-run-crate-0.5"])
def test_the_archive_is_a_valid_crate(unpacked: Path, validator: Path, tmp_path: Path, profile: str) -> None:
    cache, report = tmp_path / "cache", tmp_path / "report.json"
    prime = PROJECT / "tests" / "prime_vocabulary.py"
    subprocess.run([str(validator / "python"), str(prime), str(cache), str(VOCABULARY), *URLS], check=True)
    line = [str(validator / "rocrate-validator"), "-y", "validate", "--offline", "--cache-path", str(cache)]
    line += ["--no-paging", "-p", profile, "-l", "required", "-f", "json", "-o", str(report), str(unpacked)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(report.read_text())
    assert record["passed"] and record["issues"] == []


def test_every_stage_is_an_action_with_what_it_made(unpacked: Path) -> None:
    graph = json.loads((unpacked / "ro-crate-metadata.json").read_text())["@graph"]
    actions = {entity["@id"].lstrip("#"): entity for entity in graph if entity["@type"] == "CreateAction"}
    assert set(actions) == {folder.name for folder in unpacked.glob("stages/*")}
    entities = {entity["@id"] for entity in graph}
    for name, action in actions.items():
        results = action["result"] if isinstance(action["result"], list) else [action["result"]]
        assert {"@id": f"stages/{name}/manifest.json"} in results
        assert all(result["@id"] in entities for result in results)
