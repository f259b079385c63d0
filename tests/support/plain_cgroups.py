"""Limits of memory under Apptainer on a machine without systemd."""

import os
from pathlib import Path

import pytest

from support.containers import Sifs, need


def use_plain_cgroups(sifs: Sifs, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Apptainer make control groups by itself where systemd makes none; skipped where nobody may limit memory."""
    if Path("/run/systemd/system").is_dir():
        return
    if not os.access("/sys/fs/cgroup/memory", os.W_OK):
        need("apptainer", "nobody may limit memory on this machine")
    configuration = sifs.apptainer.program.parents[1] / "etc" / "apptainer" / "apptainer.conf"
    changed = folder / "apptainer.conf"
    changed.write_text(configuration.read_text().replace("systemd cgroups = yes", "systemd cgroups = no"))
    monkeypatch.setenv("APPTAINER_CONFIG_FILE", str(changed))
