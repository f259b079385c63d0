"""What a proof finds of the place that a stage runs in, and over what ranks say that they met."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.containers import CAP_NET_ADMIN, CAP_SYS_ADMIN, capabilities, lacking, need
from support.project import PROJECT
from support.small_disk import mounted
from support.some_resources import some_resources

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.stages import prove_place  # noqa: E402
from essence.stages.nccl_log import nccl_channels, nccl_tells  # noqa: E402

LOG = """\
node:71:71 [0] NCCL INFO Bootstrap: Using lo:127.0.0.1<0>
node:71:95 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read
node:71:95 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM/read
node:71:95 [0] NCCL INFO Channel 00/0 : 0[0] -> 2[0] [send] via NET/IB/0/GDRDMA
node:71:95 [0] NCCL INFO Connected all rings
"""

NETWORKS = """
import json, os, subprocess, time
from essence.stages import prove_place

def ip(line): subprocess.run(["ip", *line.split()], check=True)
def say(): print(json.dumps([prove_place._network(), prove_place._networks()]))
ip("link set lo up")
ip("link add one type veth peer name two")
say()
ip("link set one up")
ip("link set two up")
while len(prove_place.interfaces()) < 2: time.sleep(0.05)  # the kernel tells of a carrier a moment later
say()
os.environ[prove_place.QUEUED] = "7"
say()
"""


def test_a_disk_from_which_nothing_can_be_run_is_told(tmp_path: Path) -> None:
    resources = some_resources()
    (found,) = prove_place.place_findings(tmp_path, "local", resources)
    assert found.passed and found.name == "compilers' folder"
    with mounted(tmp_path / "disk", "noexec,size=1m"):
        (found,) = prove_place.place_findings(tmp_path / "disk", "local", resources)
    assert not found.passed and "disk is mounted noexec" in found.sentence and "--runs" in found.sentence
    assert not list(tmp_path.rglob(".proof-*"))


def test_a_container_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is open: what is asked of a container does not hold here, and each is told."""
    monkeypatch.delenv(prove_place.QUEUED, raising=False)
    monkeypatch.setattr(prove_place, "SYSTEM_FOLDERS", (tmp_path,))
    monkeypatch.setattr(prove_place, "shared_gib", lambda: 0.01)
    _, found = prove_place.place_findings(tmp_path, "docker", some_resources(shm_gib=1.0))
    assert not found.passed and f"files can be written in {tmp_path}" in found.sentence
    assert "shm_gib in [resources] is 1" in found.sentence and "--dry-run" in found.sentence
    monkeypatch.setattr(prove_place, "shared_gib", lambda: 1.0)
    _, found = prove_place.place_findings(tmp_path, "pyxis", some_resources(shm_gib=1.0))
    assert found.passed and "pyxis promises no closed container" in found.sentence and str(tmp_path) in found.sentence


def test_capabilities_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(prove_place, "STATUS", status)
    for mask, told in (("0000000000000000", ""), ("00000000a80425fb", "capabilities (00000000a80425fb)")):
        status.write_text(f"Name:\tpython\nCapPrm:\tffff\nCapEff:\t{mask}\n", encoding="ascii")
        assert prove_place._capabilities().endswith(told) and bool(prove_place._capabilities()) is bool(told)


def test_a_network_is_seen_and_interfaces_that_are_down_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a network of its own: with the loopback and a pair of interfaces, first down and then up."""
    need("network namespaces", network_obstacle())
    monkeypatch.delenv(prove_place.QUEUED, raising=False)
    command = ["unshare", "--net", sys.executable, "-c", NETWORKS]
    made = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=600)
    assert made.returncode == 0, made.stderr
    closed, opened, queued = map(json.loads, made.stdout.splitlines())
    assert closed == ["", "no network"]
    assert opened[0] == "it has a network (one, two)"
    assert queued == ["", "the network of its machine (one, two)"]


def network_obstacle() -> str | None:
    if not capabilities() >> CAP_NET_ADMIN & 1 or not capabilities() >> CAP_SYS_ADMIN & 1:
        return "no capability to make networks"
    return lacking("unshare", "ip")


def test_ranks_say_over_what_they_met(tmp_path: Path) -> None:
    told = nccl_tells(tmp_path)
    Path(told["NCCL_DEBUG_FILE"].replace("%p", "71")).write_text(LOG, encoding="utf-8")
    (tmp_path / "outcome.json").write_text("{}", encoding="utf-8")
    assert nccl_channels(tmp_path) == ["NET/IB", "P2P/CUMEM"]
    assert nccl_channels(tmp_path / "nothing") == []
