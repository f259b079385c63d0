"""Machines that lack what an engine needs, and builds that meet trouble: each one sentence with its cure."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from essence.engines import apptainer_faults, image_builds, sif_builds
from essence.engines.apptainer import ApptainerEngine
from essence.engines.apptainer_faults import cure_of, likely_fault
from essence.engines.image_builds import PROXIES, bake, bake_variables
from essence.engines.recipes import BASE_LABEL, DIGEST_LABEL, LOCK_LABEL, SOURCE_LABEL, recipe
from essence.engines.sif_builds import UNFINISHED, make_sifs
from essence.engines.sif_files import NO_DIGEST, checked_sif, sif_file
from essence.engines.sif_sources import ImageSource, of_base
from essence.errors import HeldError, MachineError, disk_error
from essence.files import GIB
from essence.record.run_directory import hold
from support.project import PROJECT

IMAGE = recipe("download", "cpu")
Usage = namedtuple("Usage", "total used free")
APPTAINER = """\
#!/bin/sh
case $1 in
  build) shift; while [ "$2" ] && [ "${{2%.def}}" = "$2" ]; do shift; done; {build} ;;
  inspect) cat <<'END'
{{"data": {{"attributes": {{"labels": {labels}}}}}}}
END
  ;;
  exec) {exec} ;;
  --version) echo apptainer version 1.4.5 ;;
esac
"""


def apptainer(folder: Path, build: str = 'echo whole > "$1"', starting: str = "exit 0") -> Path:
    """A stand-in for Apptainer; `build` has the file to make as $1."""
    known = {LOCK_LABEL: IMAGE.lock_sha256, BASE_LABEL: IMAGE.base, SOURCE_LABEL: IMAGE.source_sha256}
    labels = str({**known, DIGEST_LABEL: NO_DIGEST}).replace("'", '"')
    program = folder / "bin" / "apptainer"
    program.parent.mkdir(exist_ok=True)
    program.write_text(APPTAINER.format(build=build, exec=starting, labels=labels), encoding="utf-8")
    program.chmod(0o755)
    return program


@pytest.fixture
def sifs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    apptainer(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(tmp_path / "sif"))
    (tmp_path / "sif").mkdir()
    return tmp_path


def make(said: list[str]) -> None:
    make_sifs([(IMAGE, of_base(IMAGE))], said.append)


def test_a_build_that_was_killed_half_way_is_begun_anew(sifs: Path) -> None:
    (sifs / "sif" / f"{UNFINISHED}{sif_file(IMAGE).name}").write_text("half of a SIF")
    said: list[str] = []
    make(said)
    assert sif_file(IMAGE).read_text() == "whole\n" and "straight from the base" in said[0]
    assert sorted(file.name for file in (sifs / "sif").iterdir() if file.name.startswith(".")) == []


def test_two_builds_at_once_are_one_and_a_sentence(sifs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        hold(sifs / "sif", "the SIFs", "invoke sif"),
        pytest.raises(HeldError, match=r"is held by process .*invoke sif"),
    ):
        make([])
    assert not sif_file(IMAGE).exists()
    monkeypatch.setattr(image_builds, "check_buildx", lambda: None)
    monkeypatch.setattr(image_builds, "PROJECT", sifs)
    with hold(sifs / ".cache" / "images", "the images", "invoke images"):
        with pytest.raises(HeldError, match=r"the building of images is held by process .*; wait for it"):
            bake("cpu", ["download"])


def test_a_build_has_the_proxy_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever name; a bake file that knows none of it would leave it out."""
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert bake_variables("cpu")["HTTPS_PROXY"] == "http://proxy:3128"
    text = (PROJECT / "docker" / "bake.hcl").read_text(encoding="utf-8")
    for name in PROXIES:
        assert f'variable "{name}" {{' in text and f'= {name} == "" ? null : {name}' in text
    assert sif_builds.build_environment()["https_proxy"] == "http://proxy:3128"


def test_a_sif_that_was_edited_is_refused_and_made_again(sifs: Path) -> None:
    make([])
    assert checked_sif(sif_file(IMAGE), IMAGE, "").sha256
    sif_file(IMAGE).write_text("edited\n")
    for _ in range(2):
        with pytest.raises(MachineError, match=r"download-cpu.sif: was edited, or copied in part, .* make it again"):
            checked_sif(sif_file(IMAGE), IMAGE, "")
    make([])
    assert sif_file(IMAGE).read_text() == "whole\n" and checked_sif(sif_file(IMAGE), IMAGE, "")


@pytest.fixture(params=["TMPDIR", "APPTAINER_TMPDIR"])
def small(request: pytest.FixtureRequest, sifs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk of its own, to which a variable leads; 0.1 GiB are free there."""
    folder = sifs / "small"
    folder.mkdir()
    monkeypatch.delenv("APPTAINER_TMPDIR", raising=False)
    monkeypatch.setenv(request.param, str(folder))
    real = shutil.disk_usage
    free = Usage(1, 1, int(0.1 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free if Path(place) == folder else real(place))
    monkeypatch.setattr(sif_builds, "_on_one_disk", lambda places: False)
    return folder


def test_a_small_folder_for_temporary_files_is_told_before_anything_is_made(sifs: Path, small: Path) -> None:
    with pytest.raises(
        MachineError, match=rf"{small}: 0.1 GiB are free, .*make room, or name other folders with .*TMPDIR"
    ):
        make([])
    assert list((sifs / "sif").glob("*.sif")) == []


def test_of_an_image_that_is_here_layers_and_files_find_room(sifs: Path, small: Path) -> None:
    """Its size is known, so it is asked for what it is, not for what such an image usually is."""
    large = ImageSource("docker-daemon", "sha256:1", "sha256:1", unpacked_gib=5.7)
    with pytest.raises(MachineError, match=rf"{small}: .* making {IMAGE.name} takes about 17.8; make"):
        make_sifs([(IMAGE, large)], print)
    assert list((sifs / "sif").glob("*.sif")) == []
    make_sifs([(IMAGE, replace(large, unpacked_gib=0.02))], print)
    assert sif_file(IMAGE).read_text() == "whole\n"


SAID = {
    "FATAL:   could not use fakeroot: no mapping entry found in /etc/subuid for user": "usermod --add-subuids",
    "ERROR  : Failed to create user namespace: user namespace disabled": "user.max_user_namespaces",
    "ERROR  : Failed to create user namespace: maximum number of user namespaces exceeded": "user.max_user_namespaces",
    "FATAL:   While making image: write /tmp/a: no space left on device": "APPTAINER_TMPDIR",
    "FATAL:   container creation failed: squashfuse_ll exited with status 1": "install squashfuse",
    "FATAL:   the moon is full": "",
}


@pytest.mark.parametrize(("said", "cure"), SAID.items())
def test_what_apptainer_says_has_its_cure_or_none(said: str, cure: str) -> None:
    assert cure in cure_of(said) if cure else cure_of(said) == ""


def test_a_machine_on_which_no_container_starts_is_told_before_anything_runs(sifs: Path) -> None:
    make([])
    line = "ERROR  : Failed to create user namespace: user namespace disabled"
    apptainer(sifs, starting=f'echo "INFO: a" >&2; echo "{line}" >&2; exit 255')
    with pytest.raises(
        MachineError, match=r"Apptainer starts no container here \(.*user namespace disabled\); let users"
    ):
        ApptainerEngine("cpu")._try_start(IMAGE)
    apptainer(sifs)
    ApptainerEngine("cpu")._try_start(IMAGE)


@pytest.mark.parametrize(
    ("setting", "subuid", "told"),
    [
        ("0", "somebody:1:2\n", "users make no user namespaces here (user.max_user_namespaces = 0)"),
        ("15000", "somebody-else:1:2\n", "subuid has no line for somebody"),
        ("15000", "somebody:100000:65536\n", None),
    ],
)
def test_a_build_that_failed_for_want_of_namespaces_or_subordinate_ids(
    sifs: Path, monkeypatch: pytest.MonkeyPatch, setting: str, subuid: str, told: str | None
) -> None:
    apptainer(sifs, build="exit 255")
    (sifs / "sys" / "user").mkdir(parents=True)
    (sifs / "sys" / "user" / "max_user_namespaces").write_text(f"{setting}\n")
    (sifs / "subuid").write_text(subuid)
    monkeypatch.setattr(apptainer_faults, "SYSCTL", sifs / "sys")
    monkeypatch.setattr(apptainer_faults, "SUBUID", sifs / "subuid")
    for name in ("sh", "git", "false"):
        (sifs / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(sifs / "bin"))  # without fakeroot
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    monkeypatch.setenv("LOGNAME", "somebody")
    with pytest.raises(MachineError, match="apptainer build ended with code 255") as refused:
        make([])
    # What Apptainer itself says comes first: the machine's state may have nothing to do with it.
    assert refused.value.problem.endswith("ended with code 255; what it says is above")
    assert (
        f"where that is no answer: {sifs / told if told.startswith('subuid') else told}" in refused.value.cure
        if (told)
        else refused.value.cure == ""
    )
    assert likely_fault(sifs / "absent") == likely_fault(sifs)
    for what in ("test", "pull"):
        with pytest.raises(MachineError, match=f"apptainer {what} ended with code 1; what it says is above$"):
            sif_builds.run_apptainer(["false"], what)
    (sifs / "bin" / "fakeroot").symlink_to("/bin/true")
    assert (likely_fault(sifs) is None) == (setting != "0")


def test_a_full_folder_for_temporary_files_has_another_cure_than_a_full_run_directory(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", f"{tempfile.gettempdir()}/essence-0-abc/x")
    assert "with TMPDIR" in str(disk_error(full, "/data/runs"))
    full.filename = "/data/runs/stages/train-1/partial/x"
    assert "name another run directory with --runs" in str(disk_error(full, "/data/runs"))
    full.filename = str(tmp_path / "runs" / "x")
    assert "--runs" in str(disk_error(full, tmp_path / "runs"))


def test_the_second_user_of_a_shared_run_directory_is_told_whose_it_is(tmp_path: Path) -> None:
    """Made by one user with umask 022: another can read it and not lock it."""
    if os.getuid() != 0:
        pytest.skip("needs root, to be another user")
    with hold(tmp_path / "runs", "it", "a test"):
        pass
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == 0 and place != Path("/tmp"):
            place.chmod(place.stat().st_mode | 0o055)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom essence.errors import disk_error\n"
        "from essence.record.run_directory import hold\nos.setuid(65534)\ntry:\n"
        "    with hold(Path(sys.argv[1]), 'it', 'b'): pass\n"
        "except OSError as error: print(disk_error(error, sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs")], cwd=PROJECT, capture_output=True, text=True
    )
    assert "this user may not write there (it belongs to root); have its owner let the group write" in done.stdout, (
        done.stdout + done.stderr
    )
    old = os.umask(0o002)
    try:
        with hold(tmp_path / "shared", "it", "a test"):
            assert (tmp_path / "shared" / "lock").stat().st_mode & 0o020
    finally:
        os.umask(old)
