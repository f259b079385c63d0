"""One archive of a run: the same bytes each time, checked where nothing else is, and a valid RO-Crate."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import rocrate

from essence.errors import RecordError
from essence.record.archive import collect, unpack
from essence.record.run_directory import RunDirectory
from support.project import PROJECT, invoke, required
from support.synthetic_run import SyntheticRun

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


def test_a_run_copied_elsewhere_gives_the_same_bytes(archive: Path, micro: Path, tmp_path: Path) -> None:
    """Another folder, other times and modes, another order of files on disk."""
    runs = tmp_path / "elsewhere" / "copied runs"
    for file in sorted((p for p in micro.rglob("*") if p.is_file()), reverse=True):
        copy = runs / file.relative_to(micro)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        copy.chmod(0o600)
        os.utime(copy, (1e9, 1e9))
    again = tmp_path / "again.tar.gz"
    done = invoke("export", "--experiment", "micro", "--runs", str(runs), "--output", str(again))
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == archive.read_bytes()


def test_the_checksum_file_is_one_that_sha256sum_takes(unpacked: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=unpacked)
    assert done.returncode == 0


@pytest.mark.parametrize("kind", ["output", "manifest"])
def test_what_is_not_as_recorded_is_not_exported(micro: Path, tmp_path: Path, kind: str) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    file = sorted(
        runs.glob("stages/grade-*/output/verdicts.jsonl" if kind == "output" else "stages/grade-*/manifest.json")
    )[0]
    file.write_text(file.read_text().replace("false", "true", 1))
    done = invoke("export", "--experiment", "micro", "--runs", str(runs), "--output", str(tmp_path / "x.tar.gz"))
    assert done.returncode == 2 and f"{file}: " in done.stderr and "not exported" in done.stderr
    assert not list(tmp_path.glob("*x.tar.gz*"))


def hostile(target: Path, *members: tuple[str, bytes, str]) -> Path:
    """An archive of (name, tar type, link target)."""
    with tarfile.open(target, "w:gz") as packed:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            packed.addfile(member)
    return target


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ((("micro/../../evil", tarfile.REGTYPE, ""),), "outside the destination"),
        ((("micro/link", tarfile.SYMTYPE, "/etc/passwd"),), "is a link or a device"),
        ((("micro/link", tarfile.LNKTYPE, "../../etc/passwd"),), "is a link or a device"),
        ((("micro/device", tarfile.CHRTYPE, ""),), "is a link or a device"),
        ((("micro/pipe", tarfile.FIFOTYPE, ""),), "is a link or a device"),
        ((("micro/a", tarfile.REGTYPE, ""), ("micro/a", tarfile.REGTYPE, "")), "is in it twice"),
        ((("micro/a", tarfile.REGTYPE, ""),), "it has no SHA256SUMS"),
    ],
)
def test_a_hostile_archive_writes_nothing_elsewhere(
    tmp_path: Path, members: tuple[tuple[str, bytes, str], ...], sentence: str
) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(RecordError, match=sentence):
        unpack(hostile(tmp_path / "hostile.tar.gz", *members), folder)
    assert {p.name for p in tmp_path.iterdir()} == {"inner", "hostile.tar.gz"} and not list(tmp_path.rglob("evil"))


def test_an_archive_of_more_than_fits_is_one_sentence(tmp_path: Path) -> None:
    """The header of an archive claims an exbibyte; nothing of it is written."""
    member = tarfile.TarInfo("micro/bomb")
    member.size = 1 << 60
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(member.tobuf() + bytes(1 << 20)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordError, match="holds more than fits"):
        unpack(bomb, tmp_path / "folder")
    assert not list((tmp_path / "folder").rglob("bomb"))


def test_bytes_changed_inside_an_archive_are_one_sentence(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    damaged = tmp_path / "damaged.tar.gz"
    for place in range(1, 10):
        changed = content.copy()
        changed[len(content) * place // 10] ^= 0xFF
        damaged.write_bytes(changed)
        folder = tmp_path / str(place)
        folder.mkdir()
        try:
            _, findings = unpack(damaged, folder)
        except RecordError as error:
            findings = [str(error)]
        assert findings


def test_what_a_kill_left_half_written_is_left_out(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "runs", lsps=(1.0,), seeds=(1,)).write()
    half = run.root / run.experiment / ".report.7.partial"
    half.mkdir()
    (half / "report.html").write_text("half")
    (run.root / run.experiment / "cards").mkdir()
    (run.root / run.experiment / "cards" / "README.md").write_text("whole")
    contents = collect(RunDirectory(run.root), run.experiment, tmp_path, weights=False)
    mine = [path for path in contents.files if path.startswith(f"{run.experiment}/")]
    assert mine == [f"{run.experiment}/cards/README.md", f"{run.experiment}/plan.json"]


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


def test_the_archive_is_a_valid_crate(unpacked: Path, validator: Path, tmp_path: Path) -> None:
    """Of the strictest profile, which brings those of Workflow and Process Run Crate and of RO-Crate with it."""
    cache, report = tmp_path / "cache", tmp_path / "report.json"
    prime = PROJECT / "tests" / "support" / "prime_vocabulary.py"
    subprocess.run([str(validator / "python"), str(prime), str(cache), str(VOCABULARY), *URLS], check=True)
    line = [str(validator / "rocrate-validator"), "-y", "validate", "--offline", "--cache-path", str(cache)]
    line += [
        "--no-paging",
        "-p",
        "provenance-run-crate-0.5",
        "-l",
        "required",
        "-f",
        "json",
        "-o",
        str(report),
        str(unpacked),
    ]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(report.read_text())
    assert record["passed"] and record["issues"] == []


def test_every_stage_is_an_action_with_what_it_made(unpacked: Path) -> None:
    graph = json.loads((unpacked / "ro-crate-metadata.json").read_text())["@graph"]
    actions = {entity["@id"].lstrip("#"): entity for entity in graph if entity["@type"] == "CreateAction"}
    run = actions.pop("run")
    assert run["instrument"] == {"@id": "micro/plan.json"} and {"@id": "micro/report/report.html"} in run["result"]
    assert set(actions) == {folder.name for folder in unpacked.glob("stages/*")}
    entities = {entity["@id"] for entity in graph}
    for name, action in actions.items():
        results = action["result"] if isinstance(action["result"], list) else [action["result"]]
        assert {"@id": f"stages/{name}/manifest.json"} in results
        assert all(result["@id"] in entities for result in results)
