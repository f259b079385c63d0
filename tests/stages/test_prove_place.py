"""What a proof finds of the place that a stage runs in, and over what ranks say that they met."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

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


def test_capabilities_and_a_network_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(prove_place, "STATUS", status)
    for mask, told in (("0000000000000000", ""), ("00000000a80425fb", "capabilities (00000000a80425fb)")):
        status.write_text(f"Name:\tpython\nCapPrm:\tffff\nCapEff:\t{mask}\n", encoding="ascii")
        assert prove_place._capabilities().endswith(told) and bool(prove_place._capabilities()) is bool(told)
    monkeypatch.delenv(prove_place.QUEUED, raising=False)
    up = {"lo": True, "eth0": True, "tunl0": False}
    states = {name: SimpleNamespace(isup=is_up) for name, is_up in up.items()}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    assert prove_place._network() == "it has a network (eth0)"
    monkeypatch.setenv(prove_place.QUEUED, "7")
    assert prove_place._network() == "" and "network of its machine (eth0)" in prove_place._networks()


def test_ranks_say_over_what_they_met(tmp_path: Path) -> None:
    told = nccl_tells(tmp_path)
    Path(told["NCCL_DEBUG_FILE"].replace("%p", "71")).write_text(LOG, encoding="utf-8")
    (tmp_path / "outcome.json").write_text("{}", encoding="utf-8")
    assert nccl_channels(tmp_path) == ["NET/IB", "P2P/CUMEM"]
    assert nccl_channels(tmp_path / "nothing") == []
