"""Several ranks, one reading: weights come from the disk to the first rank alone, and are the same on all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.project import PROJECT

pytest.importorskip("transformers", reason="transformers is not installed")
from support.model_folders import make_folder, weights

RANKS = 3


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_only_the_first_rank_reads_the_weights(tmp_path: Path, tied: bool) -> None:
    whole, configured, out = tmp_path / "whole", tmp_path / "configured", tmp_path / "out"
    make_folder(whole, tied)
    configured.mkdir()
    out.mkdir()
    shutil.copy(whole / "config.json", configured)
    stored = sum(tensor.numel() for tensor in weights(whole).values())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    program = [str(PROJECT / "tests" / "support" / "loading_program.py"), str(whole), str(configured), str(out)]
    done = subprocess.run([*launcher, *program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *others = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    assert first["torch.float32"]["parameters"] == stored
    assert all(other == first for other in others)
