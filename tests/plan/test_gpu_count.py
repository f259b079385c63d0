"""`--gpus N`: another number of GPUs, the same steps."""

from pathlib import Path

import pytest

from essence.errors import ExperimentError
from essence.plan.cells import resources_of, train_settings
from essence.plan.experiment import load
from essence.plan.gpu_count import with_gpus
from essence.sizes.step_rows import deal
from support.project import invoke


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_the_effective_batch_is_that_of_the_protocol(gpus: int) -> None:
    """Four rows a step under `released`, whoever reads them; none is read twice."""
    loaded = with_gpus(load("bespoke"), gpus)
    cell = loaded.cells()[-1]
    settings, resources = train_settings(cell, loaded.experiment), resources_of("train", loaded.experiment, cell)
    assert (settings.processes, resources.gpus) == (gpus, gpus)
    assert settings.parallel == ("single" if gpus == 1 else "zero2")
    assert settings.optimizer == train_settings(cell, load("bespoke").experiment).optimizer
    dealt = deal([2500, 2400, 2300, 2200], gpus, settings.packing, settings.pad_to_multiple, resources)
    assert sorted(row for rank in dealt for part in rank for row in part) == [0, 1, 2, 3]


def test_pairs_and_models_of_their_own_go_along() -> None:
    """A teacher in shards is whole where one process trains, and a copy of a model has no more GPUs than there are."""
    loaded = with_gpus(load("pairs"), 1)
    section = loaded.experiment.by_pair["qwen3-32b_qwen3-8b-base"]
    assert (section.parallel, section.teacher_placement) == (None, "replicated")
    cell = next(cell for cell in loaded.cells() if cell.pair == "qwen3-32b_qwen3-8b-base")
    settings = train_settings(cell, loaded.experiment)
    assert (settings.parallel, settings.processes, settings.teacher_placement) == ("single", 1, "replicated")
    assert loaded.experiment.by_model["qwen3-32b"].tensor_parallel == 1
    assert with_gpus(load("pairs"), 8).experiment.by_model["qwen3-32b"].tensor_parallel == 2
    assert with_gpus(load("pairs"), 3).experiment.by_model["qwen3-32b"].tensor_parallel == 1
    assert with_gpus(loaded, None) is loaded


def test_what_cannot_be_is_refused_and_the_plan_says_what_fits(tmp_path: Path) -> None:
    for name, gpus, told in (("tiny", 2, "asks for no GPU"), ("bespoke", 0, "1 to 1024")):
        with pytest.raises(ExperimentError, match=told):
            with_gpus(load(name), gpus)
    done = invoke("plan", "--experiment", "bespoke", "--gpus", "1", "--runs", str(tmp_path))
    assert done.returncode == 0 and "wants 1 GPU of 80 GiB" in done.stdout
    assert "does not fit" in done.stdout and "set optimizer_placement = 'main_memory'" in done.stdout
    assert " GPU hours, " in done.stdout and "not proved: updates in main memory at 100 GB/s" in done.stdout
