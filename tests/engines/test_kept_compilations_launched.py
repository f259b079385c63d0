"""Where vLLM keeps what it compiles, as every engine starts it."""

from dataclasses import replace
from pathlib import Path

import pytest

from essence.engines.engine import Mount, surroundings
from essence.engines.local import variables
from essence.engines.slurm.job_text import batch_text, submit_text
from essence.engines.slurm.site import load_site
from essence.evaluation.decoders.kept_compilations import KEPT
from essence.plan.stage_plan import PlannedStage
from essence.record.run_directory import RunDirectory
from support.sampling import settings
from support.slurm_job import job
from support.some_resources import some_resources


def generation(decoder: str, lock: str = "a") -> PlannedStage:
    asked = settings(decoder=decoder)
    environment = {"lock_sha256": lock}
    return PlannedStage(
        "generate-0", "generate", "0", "generate", asked, {}, some_resources(), "eval", environment, "source"
    )


def test_all_stages_of_an_environment_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/the/caller/s")
    runs = RunDirectory(tmp_path)
    one = surroundings(generation("vllm"), runs)
    other = surroundings(replace(generation("vllm"), id="generate-1"), runs)
    newer = surroundings(generation("vllm", lock="b"), runs)
    folder = runs.compiled({"lock_sha256": "a"})
    assert one.written_folders == [runs.stage("generate-0").path, folder]
    assert other.written_folders == [runs.stage("generate-1").path, folder]
    assert newer.written_folders[1] != folder and newer.written_folders[1].parent == folder.parent
    for told in (one.contained_variables(), variables(one)):
        assert told[KEPT] == str(folder) and told["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
        inside = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE")
        assert {Path(told[name]).parent for name in inside} == {folder}
    assert not folder.exists()
    one.make_folders()
    assert folder.is_dir() and runs.experiments() == []


def test_a_stage_without_vllm_has_no_such_folder(tmp_path: Path) -> None:
    around = surroundings(generation("transformers"), RunDirectory(tmp_path))
    assert len(around.written_folders) == 1 and KEPT not in around.contained_variables()


def test_a_job_makes_the_folder_again_that_was_removed_while_it_waited(tmp_path: Path) -> None:
    asked, compiled = job(), tmp_path / "compiled" / "0"
    around = asked.surroundings
    shared = Mount(compiled, compiled, False)
    asked = replace(asked, surroundings=replace(around, mounts=(*around.mounts, shared)))
    text = batch_text(asked, load_site("alliance-h100"))
    assert f"\nmkdir -p {compiled}\n" in text and f"{compiled}:{compiled}:rw" in text
    assert f"\nmkdir -p {around.folder.path} {compiled}\n" in submit_text([(asked, text)])
