"""A laptop of another kind: which lock is installed, what is refused, and a stage without what only Linux has.

The systems themselves are not here: stand-ins for `uname` and uv, and Python without Linux's own calls.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from essence.commands.images import build as build_images
from essence.commands.lock import ARM, PLATFORMS, lock_command
from essence.commands.options import select
from essence.commands.sif import build as build_sifs
from essence.engines import ENGINES, make_engine, registry_image
from essence.engines.image_address import read_address
from essence.engines.selected_run import Options
from essence.errors import MachineError
from support.other_system import WITHOUT_LINUX
from support.project import MICRO, PROJECT

PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ; .+?)? \\$", re.MULTILINE)
UV = """\
#!/bin/sh
echo "$* torch=${UV_TORCH_BACKEND-none}" >> calls
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  printf '#!/bin/sh\\npwd\\n' > .venv/bin/python
  chmod +x .venv/bin/python
fi
"""
NO_PYTHON = """\
#!/bin/sh
echo "$*" >> calls
case $* in
  *"--python VERSION"*) exit 2 ;;
  venv*) for folder; do :; done; mkdir -p "$folder/bin"; ln -s /bin/true "$folder/bin/python" ;;
esac
"""


def pins(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package, version in PINNED.findall((PROJECT / "locks" / f"{name}.txt").read_text(encoding="utf-8")):
        found.setdefault(package, set()).add(version)
    return found


@pytest.fixture
def installed(tmp_path: Path):  # type: ignore[no-untyped-def]
    """What uv is asked to install by `locks/install.sh` on a system of that name."""
    shutil.copytree(PROJECT / "locks", tmp_path / "locks")
    programs, uv = tmp_path / "bin", tmp_path / ".cache" / "bootstrap" / "bin" / "uv"
    for place in (programs, uv.parent):
        place.mkdir(parents=True)
    uv.write_text(UV)
    uv.chmod(0o755)
    shutil.copy(tmp_path / "locks" / "bootstrap.txt", tmp_path / ".cache" / "bootstrap" / "lock")

    def install(system: str, machine: str, *words: str) -> tuple[int, str]:
        (programs / "uname").write_text(f'#!/bin/sh\n[ "$1" = -s ] && echo {system} || echo {machine}\n')
        (programs / "uname").chmod(0o755)
        environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
        (tmp_path / "temporary").mkdir(exist_ok=True)
        environment |= {"PYTHON": sys.executable, "TMPDIR": str(tmp_path / "temporary")}
        line = ["bash", str(tmp_path / "locks" / "install.sh"), *words]
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
        calls = tmp_path / "calls"
        return done.returncode, done.stderr + (calls.read_text() if calls.is_file() else "")

    return install


@pytest.mark.parametrize(
    ("system", "machine", "lock", "index"),
    [
        ("Linux", "x86_64", "locks/cpu.txt", "cpu"),
        ("Darwin", "arm64", "locks/cpu.txt", "none"),
        ("Linux", "aarch64", "locks/cpu-linux-aarch64.txt", "none"),
    ],
)
def test_each_system_has_its_lock(installed, system: str, machine: str, lock: str, index: str) -> None:  # type: ignore[no-untyped-def]
    code, said = installed(system, machine, "cpu")
    assert code == 0, said
    assert f"pip sync --quiet --require-hashes {lock} torch={index}" in said


@pytest.mark.parametrize(
    ("system", "machine", "words", "told"),
    [
        ("Darwin", "x86_64", ("cpu",), "no versions are locked for Darwin-x86_64"),
        ("FreeBSD", "amd64", ("cpu",), "no versions are locked for FreeBSD-amd64"),
        ("Darwin", "arm64", ("environments", "cuda"), "locked for Linux x86-64 alone, and this is Darwin-arm64"),
    ],
)
def test_a_system_without_a_lock_is_one_sentence(  # type: ignore[no-untyped-def]
    installed, system: str, machine: str, words: tuple[str, ...], told: str
) -> None:
    code, said = installed(system, machine, *words)
    assert code == 2 and told in said and len(said.strip().splitlines()) == 1


def test_the_host_side_is_installed_on_any_system(installed) -> None:  # type: ignore[no-untyped-def]
    code, said = installed("Darwin", "x86_64", "host")
    assert code == 0 and "pip sync --quiet --require-hashes locks/host.txt torch=none" in said, said


@pytest.mark.parametrize(
    ("flavour", "version", "environment"), [("cuda", "3.12", "train"), ("cpu", "3.11", "download")]
)
def test_a_self_test_without_its_python_is_one_sentence_and_leaves_nothing(  # type: ignore[no-untyped-def]
    installed, tmp_path: Path, flavour: str, version: str, environment: str
) -> None:
    """The environment of downloads is for Python 3.11 in both flavours."""
    (tmp_path / ".cache" / "bootstrap" / "bin" / "uv").write_text(NO_PYTHON.replace("VERSION", version))
    code, said = installed("Linux", "x86_64", "self-test", flavour)
    assert code == 2 and f"setup: no Python {version} here, and none could be fetched: install it" in said, said
    assert f".venv-{environment}" in said and not list((tmp_path / "temporary").iterdir())


def test_images_are_made_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    quiet = Console(quiet=True)
    for name, build in (
        ("images", lambda: build_images("cpu", None, quiet)),
        ("sif", lambda: build_sifs("cpu", None, None, quiet)),
    ):
        with pytest.raises(
            MachineError, match=f"invoke {name}: its images are locked for .* Darwin arm64; make them on"
        ):
            build()
    with pytest.raises(MachineError, match=r"needs linux/arm64; take a machine of that kind$"):
        registry_image._check_platform(read_address(f"images.example/me/x@sha256:{'0' * 64}", ""), {("linux", "amd64")})  # type: ignore[arg-type]


def test_the_versions_for_arm_are_those_of_the_other_systems() -> None:
    """But for PyTorch's build, and the libraries that it loads."""
    arm, cpu = pins(ARM), pins("cpu")
    assert arm["torch"] == {"2.13.0"} <= cpu["torch"]
    different = {name for name in arm if not arm[name] <= cpu.get(name, set())}
    assert all(re.match(r"nvidia-|cuda-", name) for name in different), different
    assert "--python-platform" in lock_command(ARM, False) and ARM in PLATFORMS
    assert "--universal" in lock_command("cpu", False)


def test_a_lock_for_all_has_pytorch_for_macos() -> None:
    text = (PROJECT / "locks" / "cpu.txt").read_text(encoding="utf-8")
    assert "torch==2.13.0 ; sys_platform != 'linux'" in text and "torch==2.13.0+cpu ; sys_platform == 'linux'" in text


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "local"])
def test_engines_are_refused_in_one_sentence_where_no_image_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = select(Options(experiment=str(MICRO)), baselines=False).wanted
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(MachineError, match=f"engine {name}: its images are locked for Linux x86_64, .* Darwin arm64"):
        make_engine(name, "cpu").check(stages)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_stage_runs_without_what_only_linux_has(tmp_path: Path) -> None:
    """The problems and rows of the miniature are made, and grading's processes start."""
    line = [sys.executable, "-c", WITHOUT_LINUX, "run", "--experiment", str(MICRO), "--only", "download"]
    done = subprocess.run([*line, "--runs", str(tmp_path)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert list(tmp_path.glob("stages/*/manifest.json"))
    assert "on another system" in "".join(log.read_text() for log in tmp_path.glob("stages/*/log.txt"))


ALONE = """
import os, subprocess, sys, time
os.environ["ESSENCE_PARENT"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
LOOKS = """
import time
from support.other_system import hide_linux
hide_linux()
import signal
from essence.progress import StopRequest, die_with_launcher, stop_when_alone
from essence.stages.watcher import Watcher
die_with_launcher(signal.SIGTERM)
stop = StopRequest()
stop.install()
stop_when_alone()
Watcher(stop, "generate").watch()
print("up", flush=True)
while not stop: time.sleep(0.01)
print(f"stopped by {stop.signal_name}", flush=True)
"""


def test_a_stage_whose_host_is_killed_notices_it_without_a_signal_of_the_kernel() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])}
    command = [sys.executable, "-c", ALONE, LOOKS]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout and host.stdout.readline() == "up\n"
        host.kill()
        assert host.stdout.readline() == "stopped by the death of the process that started it\n"
