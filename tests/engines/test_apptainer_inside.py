"""Stages under Apptainer, from inside: what they see, what they may do, and how their end is reported."""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from essence.engines.apptainer import ApptainerEngine, argv, work_folder
from essence.engines.apptainer_stage import ApptainerStage, host_variables
from essence.engines.engine import Exit, Launch, Mount, limit_words
from essence.engines.secrets import left_token, token
from essence.errors import MachineError
from essence.settings import Resources
from support.container_launch import RESOURCES, surroundings_of
from support.containers import Sifs
from support.inside import LOOK, looking
from support.plain_cgroups import use_plain_cgroups
from support.processes import wait_for

NOBODY = 65534

pytestmark = [pytest.mark.apptainer, pytest.mark.docker]


def around_here(tmp_path: Path, **changes: object) -> Launch:
    """A stage of the caller's own."""
    around = surroundings_of(tmp_path, user=(os.getuid(), os.getgid()), **changes)
    os.chown(around.folder.path, os.getuid(), os.getgid())
    return around


@pytest.fixture
def engine(sifs: Sifs) -> ApptainerEngine:
    del sifs
    return ApptainerEngine("cpu")


def run_inside(engine: ApptainerEngine, around: Launch, code: str) -> ApptainerStage:
    """Python code in the container that a stage would have, through the engine's own start."""
    return engine.start(looking(around, code))


def ended(stage: ApptainerStage, timeout_s: float = 90.0) -> Exit:
    endings: list[Exit | None] = []
    wait_for(lambda: endings.append(stage.poll()) or endings[-1] is not None, timeout_s)
    assert endings[-1] is not None
    return endings[-1]


LOOK_HERE = f"""{LOOK}
(own.parent / "stray.txt").write_text("in the private /tmp")
found["neighbours"] = sorted(p.name for p in own.parent.iterdir())
found["write"] = write(
    read, "/", "/opt/essence", "/opt/essence-source/essence", "/etc", "/usr/bin", "/var", "/root", "/home"
)
found["planted"] = importlib.util.find_spec("planted") is not None
found["home"] = [os.environ["HOME"], os.path.exists(os.environ.get("HOST_HOME", "/nowhere"))]
found["path"] = [p for p in __import__("sys").path if p]
found["processes"] = len([p for p in os.listdir("/proc") if p.isdigit()])
print(json.dumps(found))
"""


@pytest.fixture
def host_with_traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose files, user site packages and PYTHONPATH must not be seen; a secret; variables for Apptainer."""
    home = tmp_path / "home"
    site = home / ".local" / "lib" / "python3.11" / "site-packages"
    for folder in (site, home / "path"):
        folder.mkdir(parents=True)
        (folder / "planted.py").write_text("raise SystemExit('seen')\n")
    (site / "sitecustomize.py").write_text("raise SystemExit('seen')\n")
    for name, value in {
        "HOME": str(home),
        "PYTHONPATH": str(home / "path"),
        "APPTAINERENV_PYTHONPATH": str(home / "path"),
        "APPTAINER_BIND": str(home),
        "HF_TOKEN": "planted-secret",
        "CUDA_VISIBLE_DEVICES": "5,7",
    }.items():
        monkeypatch.setenv(name, value)
    return home


def check_isolation(found: dict[str, object], around: Launch, home: Path) -> None:
    """The output of LOOK. The folders of tests are below /tmp, which is a different one inside."""
    write = found["write"]
    assert isinstance(write, dict) and all(write.values()), write
    assert found["interfaces"] == ["lo"] and found["connect"]
    assert found["neighbours"] == ["input", "own", "stray.txt"]
    assert set(found["capabilities"]) == {"0" * 16} and found["no_new_privileges"]  # type: ignore[call-overload]
    assert not found["planted"] and found["home"] == ["/tmp", False]
    assert not any(str(home) in place for place in found["path"])  # type: ignore[attr-defined]
    variables = found["variables"]
    assert isinstance(variables, dict) and variables["PYTHONPATH"] == "/opt/essence-source"
    assert "planted" not in json.dumps(variables) and str(home) not in json.dumps(variables)
    assert isinstance(found["processes"], int) and found["processes"] < 5
    assert not (around.folder.path.parent / "stray.txt").exists()


def test_a_stage_sees_its_folders_and_nothing_else(
    engine: ApptainerEngine, tmp_path: Path, host_with_traps: Path
) -> None:
    around = around_here(tmp_path, resources=RESOURCES.model_copy(update={"gpus": 1}))
    (tmp_path / "neighbour").mkdir()
    around = replace(around, variables={"HOST_HOME": str(host_with_traps)})
    ending = ended(run_inside(engine, around, LOOK_HERE))
    said = around.folder.log.read_text()
    assert ending == Exit(0), said
    found = json.loads(said.splitlines()[-1])
    assert found["variables"].pop("HOST_HOME") == str(host_with_traps)
    assert found["uid"] == [os.getuid(), os.getgid()] and found["variables"]["CUDA_VISIBLE_DEVICES"] == "5"
    check_isolation(found, around, host_with_traps)
    assert not work_folder(around).exists()


def test_another_user_than_root_is_isolated_too(sifs: Sifs, host_with_traps: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can be somebody else for a test, with setpriv")
    with tempfile.TemporaryDirectory(prefix="ess-") as name:
        place = Path(name)
        around = surroundings_of(place, user=(NOBODY, NOBODY))
        for folder in (around.folder.path, work_folder(around), place / "cache"):
            folder.mkdir(exist_ok=True)
            os.chown(folder, NOBODY, NOBODY)
        line = argv(looking(around, LOOK_HERE), sifs.file("download"))
        done = subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *line],
            # Another user may not mount through /dev/fuse everywhere: the SIF is unpacked.
            env={**host_variables(), "APPTAINER_UNSQUASH": "1", "APPTAINER_TMPDIR": str(place / "cache")}
            | {"APPTAINER_CACHEDIR": str(place / "cache"), "HOME": str(place / "cache")},
            cwd=place,
            capture_output=True,
            text=True,
        )
        shutil.rmtree(work_folder(around))
        if "Permission denied" in done.stderr:
            pytest.skip("the project lies where no other user may look")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["uid"] == [NOBODY, NOBODY]
        assert (around.folder.path / "made.txt").stat().st_uid == NOBODY
        check_isolation(found, around, host_with_traps)


def test_a_download_has_network_and_reads_the_token_from_a_file(
    engine: ApptainerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    around = around_here(tmp_path, network=True)
    code = (
        "import os, pathlib, socket, time; from huggingface_hub import get_token; "
        "print(len(socket.if_nameindex()) > 1, get_token() == 'planted-' + 'secret', "
        "'planted' in str(dict(os.environ)), flush=True); time.sleep(1)"
    )
    stage = run_inside(engine, around, code)
    wait_for(lambda: around.folder.log.read_text() or stage.poll())
    processes = subprocess.run(["ps", "eaxww", "-o", "args"], capture_output=True, text=True).stdout
    seen = [line for line in processes.splitlines() if "planted-secret" in line and str(around.folder.path) in line]
    assert seen == []
    assert ended(stage) == Exit(0) and around.folder.log.read_text() == "True True False\n"
    assert not left_token(around.folder.path).file.exists()
    known = token(around.folder.path)
    assert known and "planted-secret" not in " ".join(argv(around, Path("x.sif"), known))
    known.forget()


@dataclass(frozen=True)
class Asking:
    """As much of a planned stage as an engine's check looks at."""

    resources: Resources
    runs_in: str = "download"
    settings: object = None


def test_gpus_that_no_container_would_get_are_told_before_anything_starts(
    engine: ApptainerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking(RESOURCES.model_copy(update={"gpus": 1}))
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has GPUs")
    with pytest.raises(MachineError, match=r'Apptainer gives its containers no GPUs \("nvidia-smi": executable'):
        engine.check([asking])  # type: ignore[list-item]
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text("#!/bin/sh\necho GPU 0\n", encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    engine.check([asking])  # type: ignore[list-item]


STUBBORN = "import signal, time; signal.signal(15, lambda *_: exit(75)); print('up', flush=True); time.sleep(60)"


def test_how_a_stage_ended_is_told_apart(engine: ApptainerEngine, tmp_path: Path) -> None:
    around = around_here(tmp_path)
    log = around.folder.log
    assert ended(run_inside(engine, around, "print('said'); exit(7)")) == Exit(7)
    assert log.read_text() == "said\n"
    own = "import os; os.kill(os.getpid(), 9)"
    assert ended(run_inside(engine, around, own)) == Exit(-9, "killed by SIGKILL")
    stage = run_inside(engine, around, STUBBORN)
    wait_for(lambda: log.read_text().endswith("up\n"))
    stage.stop()
    assert ended(stage) == Exit(75)
    stage = run_inside(engine, around, STUBBORN)
    wait_for(lambda: log.read_text().endswith("up\nup\n"))
    stage.kill()
    assert ended(stage).code == -9 and not work_folder(around).exists()
    gone = replace(around, mounts=(*around.mounts, Mount(tmp_path / "gone", tmp_path / "gone", True)))
    ending = ended(run_inside(engine, gone, ""))
    assert ending.code == 255 and ending.cause
    assert ending.cause.startswith("Apptainer could not start its container: container creation failed")
    assert f"{tmp_path}/gone" in ending.cause


def test_memory_that_ran_out_is_told(
    engine: ApptainerEngine, sifs: Sifs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = around_here(tmp_path, resources=RESOURCES.model_copy(update={"memory_gib": 0.25}))
    if not Path("/run/systemd/system").is_dir():
        ending = ended(run_inside(engine, around, ""))
        assert ending.cause and ending.cause.endswith("resources.memory_gib = 0 asks for no limit")
    use_plain_cgroups(sifs, tmp_path, monkeypatch)
    greedy = "x = bytearray(1 << 30)"
    ending = ended(run_inside(engine, around, greedy))
    assert ending == Exit(-9, "killed because memory ran out: it may take 0.25 GiB (resources.memory_gib)")


def test_limits_are_those_that_were_asked_for(engine: ApptainerEngine, tmp_path: Path) -> None:
    assert limit_words({"memlock": -1, "stack": 1024}) == ["prlimit", "--memlock=unlimited", "--stack=1024"]
    around = around_here(tmp_path, resources=RESOURCES.model_copy(update={"ulimits": {"nofile": 4096}}))
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert ended(run_inside(engine, around, code)) == Exit(0)
    assert around.folder.log.read_text() == "(4096, 4096)\n"
