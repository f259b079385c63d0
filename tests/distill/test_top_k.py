"""The approximate teacher: exact where all tokens but one are kept, labelled everywhere, never more than the whole."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from support.some_resources import some_objective, some_resources
from support.synthetic_run import SyntheticRun

pytest.importorskip("transformers", reason="transformers is not installed")
from test_teacher import curve, stage_settings, surroundings
from test_tokenize_stage import context, inputs, prepared, train_settings

from essence.distill.module import objective_from_states
from essence.distill.objective import objective
from essence.distill.top_k import TopK, likeliest, sparse_losses
from essence.errors import InputError
from essence.report.page.page import statement
from essence.report.results.read import read_results
from essence.settings import Divergence, ObjectiveSettings
from essence.stages import teacher, train

__all__ = ["prepared"]  # a fixture
LABELS, HIDDEN, STUDENT, TEACHER = 7, 5, 11, 13
LOSS = some_resources().loss.model_copy(update={"chunk_rows": 3})


def drawn(temperature: float, k: int) -> tuple[Tensor, Tensor, Tensor, TopK, Tensor, Tensor]:
    """States, head, teacher's logits, its top-k, labels and weights; float64."""
    torch.manual_seed(0)
    states, head = torch.randn(LABELS, HIDDEN).double(), torch.randn(STUDENT, HIDDEN).double()
    logits = 3 * torch.randn(LABELS, TEACHER).double()
    log_p = (logits / temperature).log_softmax(-1)
    kept, ids = log_p.topk(k, dim=-1)
    top = TopK(ids, kept, log_p.scatter(-1, ids, -torch.inf).logsumexp(-1), TEACHER)
    weights = torch.rand(LABELS).double()
    labels = torch.randint(0, STUDENT, (LABELS,))
    labels[2], weights[4] = -1, 0.0
    return states.requires_grad_(), head.requires_grad_(), logits, top, labels, weights


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_all_tokens_but_one_are_the_whole_distribution(divergence: str, temperature: float) -> None:
    chosen: ObjectiveSettings = some_objective(kd_weight=0.7, divergence=divergence, temperature=temperature)
    states, head, logits, top, labels, weights = drawn(temperature, TEACHER - 1)
    whole = objective(states @ head.T, logits, labels, weights, chosen)
    found = objective_from_states(states, head, top, None, labels, weights, chosen, LOSS)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(found.loss, states, head), gradients(whole.loss, states, head), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_fewer_tokens_say_less_and_chunks_change_nothing(divergence: str) -> None:
    chosen = some_objective(kd_weight=0.7, divergence=divergence)
    states, head, logits, top, labels, weights = drawn(1.0, 4)
    whole = objective(states @ head.T, logits, labels, weights, chosen)
    known = weights.masked_fill(labels < 0, 0.0)
    plain = sparse_losses(states @ head.T, top, labels.clamp(min=0), known, chosen)
    found = objective_from_states(states, head, top, None, labels, weights, chosen, LOSS)
    assert found.kd < whole.kd and abs(found.ce - whole.ce) < 1e-12 and abs(found.kd - plain.kd) < 1e-12
    for mine, theirs in zip(gradients(found.loss, states, head), gradients(plain.loss, states, head), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_what_is_stored_sums_to_one() -> None:
    stored = likeliest(5 * torch.randn(6, 40), 8, 1.3)
    assert stored["ids"].dtype == torch.int32
    total = stored["log_p"].exp().sum(-1) + stored["log_rest"].exp()
    torch.testing.assert_close(total, torch.ones(6))


def store(folder: Path, prepared: dict[str, Path], k: int) -> tuple[Path, Any]:
    around = surroundings(folder, prepared)
    return around.partial, teacher.run(stage_settings(top_k={"k": k, "temperature": 1.0}), around)


def test_through_the_stages(prepared: dict[str, Path], tmp_path: Path) -> None:
    """80 tokens are the teacher's vocabulary: 79 give the live curve, 8 another one, and the record says so."""
    live = curve(tmp_path / "live", prepared, train_settings())
    nearly, _ = store(tmp_path / "nearly", prepared, 79)
    found = curve(tmp_path / "a", prepared, train_settings(teacher="top-k", teacher_top_k=79), teacher=nearly)
    assert found == pytest.approx(live, abs=1e-5)
    few, outcome = store(tmp_path / "few", prepared, 8)
    assert (outcome.results["form"], outcome.results["exact"]) == ("top-k, approximate", False)
    assert 0 <= outcome.results["bytes"] - outcome.results["tokens"] * (8 * 8 + 8) < 2000 * outcome.results["files"]
    around = context(tmp_path / "b", **inputs(prepared, teacher=few))
    trained = train.run(train_settings(teacher="top-k", teacher_top_k=8), around)
    assert trained.executed["parallel"]["teacher"] == "top-k"
    loss = trained.executed["preflight"]["objective"]
    assert (loss["form"], loss["validation"]["form"]) == ("sparse", "chunked") and loss["validation"]["parity"][
        "passed"
    ]
    assert trained.results["last_loss"] != pytest.approx(live[-3], abs=1e-3)
    with pytest.raises(InputError, match="holds top_k = 8, not 16: run the stage again"):
        curve(tmp_path / "c", prepared, train_settings(teacher="top-k", teacher_top_k=16), teacher=few)
    with pytest.raises(InputError, match="teacher_top_k = 80, but the teacher knows 80 tokens: lower it"):
        store(tmp_path / "d", prepared, 80)


def test_the_report_begins_with_what_is_approximate(tmp_path: Path) -> None:
    made = SyntheticRun(tmp_path / "runs", lsps=(0.5, 1.0), seeds=(1,)).write()
    assert "Approximate" not in statement(read_results(made.root, made.experiment))[0]
    settings = json.loads((made.root / "stages" / made.stage_of(0, "train") / "manifest.json").read_text())["settings"]
    told = {**settings, "resolved": {**settings["resolved"], "teacher": "top-k"}}
    made.damage(made.stage_of(0, "train"), settings=told)
    first = statement(read_results(made.root, made.experiment))[0]
    assert first.startswith(
        "Approximate: 1 trainings knew of the teacher the probabilities of its likeliest tokens alone"
    )
