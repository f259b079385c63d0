"""A whole training of protocol `released`, from rows to the kept checkpoint, against the same written out plainly.

The plain side has numbers of its own, not those of experiments/: rows, markers, template, filter, split, order, steps,
padding on the left, labels, objective, AdamW, schedule, clipping, validations, choice. It calls nothing of the kit,
reads one row at a time and lets PyTorch, transformers and the datasets library do what they do in the released code.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
from safetensors.torch import load_file  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.utils.data import DistributedSampler  # noqa: E402

from essence.plan.cells import tokenize_settings, train_settings  # noqa: E402
from essence.plan.experiment import load  # noqa: E402
from essence.settings import TrainSettings  # noqa: E402
from essence.stages import tokenize, train  # noqa: E402
from support.stage_inputs import context, make_model, make_rows  # noqa: E402

LONGEST, TRAIN_ROWS, VALIDATION_ROWS, RANKS, EPOCHS, MULTIPLE = 95, 22, 7, 4, 2, 16
IGNORED = -100
REPLACED = {
    "<|begin_of_solution|>\n\n": "",
    "\n\n<|end_of_solution|>": "",
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
}
CASES = [(0.5, "left", "p+cot+a"), (1.0, "left", "cot"), (0.7, "left", "p+a"), (0.5, "right", "cot+a")]
"""Proportion, span, sections."""


@dataclass
class Plain:
    """What the plain training found."""

    steps: list[dict[str, float]] = field(default_factory=list)
    validations: list[list[float]] = field(default_factory=list)
    """Mean loss of each rank."""
    kept: int = 0
    """Number of the validation whose weights are kept, from 1."""
    weights: dict[str, Any] = field(default_factory=dict)


def tokens_of(rows: Path, tokenizer: Any) -> list[list[int]]:
    found = []
    for line in (rows / "rows" / "rows.jsonl").read_text().splitlines():
        user, assistant = (turn["value"] for turn in json.loads(line)["conversations"])
        for old, new in REPLACED.items():
            assistant = assistant.replace(old, new)
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=True, add_generation_prompt=True)
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def split(tokens: list[list[int]]) -> tuple[list[int], list[int]]:
    """Row numbers of the training and of the validation rows."""
    short = [number for number, ids in enumerate(tokens) if len(ids) < LONGEST]
    parts = datasets.Dataset.from_dict({"row": short}).train_test_split(test_size=VALIDATION_ROWS, seed=42)
    return parts["train"]["row"][:TRAIN_ROWS], parts["test"]["row"]


def padded(ids: list[int], case: tuple[float, str, str], tokenizer: Any) -> tuple[Any, Any, Any] | None:
    """Ids, mask and labels, (1, tokens) each; None where the row has no marker or nothing to learn, which is NaN."""
    lsp, span, sections = case
    think, end_think = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    if think not in ids or end_think not in ids:
        return None
    start, end, kept = ids.index(think), ids.index(end_think), max(1, int(len(ids) * lsp))
    first = {"left": 0, "right": len(ids) - kept}[span]
    pads = -kept % MULTIPLE
    read, labels = [tokenizer.eos_token_id] * pads, [IGNORED] * pads
    for place in range(first, first + kept):
        named = "p" if place < start else "cot" if place <= end else "a"
        wanted = named in sections.split("+") or (sections in ("cot", "p+cot") and place == end + 1)
        read.append(ids[place])
        labels.append(ids[place] if wanted and ids[place] != tokenizer.eos_token_id else IGNORED)
    if all(label == IGNORED for label in labels[1:]):
        return None
    mask = [0] * pads + [1] * kept
    return torch.tensor([read]), torch.tensor([mask]), torch.tensor([labels])


def dealt(rows: int, epoch: int | None) -> list[list[int]]:
    """What each of four ranks reads of so many rows: shuffled in an epoch, in order in a validation."""
    shares = []
    for rank in range(RANKS):
        sampler: Any = DistributedSampler(range(rows), RANKS, rank, shuffle=epoch is not None, seed=42)  # type: ignore[arg-type]
        sampler.set_epoch(epoch or 0)
        shares.append(list(sampler))
    return shares


def losses_of(row: tuple[Any, Any, Any], student: Any, teacher: Any) -> tuple[Any, Any]:
    """CE and KD of a row."""
    ids, mask, labels = row
    logits = student(input_ids=ids, attention_mask=mask).logits[0, :-1]
    at = labels[0, 1:] != IGNORED
    with torch.no_grad():
        taught = teacher(input_ids=ids, attention_mask=mask).logits[0, :-1][at].softmax(-1)
    zeros = torch.zeros(int(at.sum()), taught.shape[1] - logits.shape[1])
    kd = -(taught * torch.cat([logits[at], zeros], 1).log_softmax(-1)).sum(-1).mean()
    return cross_entropy(logits[at], labels[0, 1:][at]), kd


def plain_training(training: list[Any], validation: list[Any], student: Any, teacher: Any) -> Plain:
    found, least = Plain(), [math.inf] * RANKS
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-6, weight_decay=0.05)
    steps = len(dealt(len(training), 0)[0])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-6, total_steps=EPOCHS * steps, pct_start=0.1)
    for epoch in range(EPOCHS):
        for places in zip(*dealt(len(training), epoch), strict=True):
            rows = [training[place] for place in places if training[place] is not None]
            told = {
                "lr": schedule.get_last_lr()[0],
                "beta1": optimizer.param_groups[0]["betas"][0],
                "ce": 0.0,
                "kd": 0.0,
            }
            optimizer.zero_grad()
            for row in rows:
                ce, kd = losses_of(row, student, teacher)
                ((0.5 * ce + 0.5 * kd) / len(rows)).backward()
                told["ce"] += ce.item() / len(rows)
                told["kd"] += kd.item() / len(rows)
            told["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0))
            optimizer.step()
            schedule.step()
            found.steps.append(told)
            with torch.no_grad():
                each = [losses_of(row, student, teacher)[0].item() if row else None for row in validation]
            means = []
            for share in dealt(len(validation), None):
                own = [loss for place in share if (loss := each[place]) is not None]
                means.append(sum(own) / len(own))
            found.validations.append(means)
            if all(new < old for new, old in zip(means, least, strict=True)):
                least, found.kept = means, len(found.validations)
    found.weights = {name: one.detach() for name, one in student.named_parameters()}
    return found


def settings_of(case: tuple[float, str, str]) -> TrainSettings:
    """The shipped experiment's, with sizes and machine of this test."""
    loaded = load("bespoke")
    asked = train_settings(next(cell for cell in loaded.cells() if cell.lsp == 0.5), loaded.experiment)
    sizes = {"max_row_tokens": LONGEST, "train_rows": TRAIN_ROWS, "validation_rows": VALIDATION_ROWS, "published": None}
    lsp, span, sections = case
    return asked.model_copy(
        update={
            "rows": asked.rows.model_copy(update=sizes),
            "view": asked.view.model_copy(update={"lsp": lsp, "span": span, "sections": sections}),
            "compute_dtype": "float32",
            "parallel": "single",
            "processes": 1,
        }
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows, two models and the tokenize stage's output; a tenth of the rows has no thought."""
    root, loaded = tmp_path_factory.mktemp("plain"), load("bespoke")
    rows, student = make_rows(root / "rows"), make_model(root / "student", 0)
    teacher = make_model(root / "teacher", 1, hidden=24, vocabulary=80)
    asked = tokenize_settings("bespoke", "released", loaded)
    without_problems = asked.decontamination.model_copy(update={"problem_fields": {}})
    around = context(root / "tokens", rows=rows, tokenizer=student)
    tokenize.run(asked.model_copy(update={"decontamination": without_problems}), around)
    return {"rows": rows, "student": student, "teacher": teacher, "tokens": around.partial}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_training_is_the_plain_one(given: dict[str, Path], case: tuple[float, str, str], tmp_path: Path) -> None:
    load_model = transformers.AutoModelForCausalLM.from_pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(given["student"] / "model")
    tokens = tokens_of(given["rows"], tokenizer)
    training, validation = ([padded(tokens[row], case, tokenizer) for row in part] for part in split(tokens))
    assert None in training and len(training) % RANKS  # both rules for rows that are missing have something to say
    student = load_model(given["student"] / "model")
    before = {name: one.detach().clone() for name, one in student.named_parameters()}
    plain = plain_training(training, validation, student, load_model(given["teacher"] / "model"))

    inputs = {name: given[name] for name in ("tokens", "student", "teacher")}
    outcome = train.run(settings_of(case), context(tmp_path, **inputs))
    lines = [json.loads(line) for line in (tmp_path / "partial" / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["kind"] == "step"]
    assert len(told) == len(plain.steps) == EPOCHS * math.ceil(TRAIN_ROWS / RANKS)
    for line, expected in zip(told, plain.steps, strict=True):
        assert {name: line[name] for name in ("lr", "beta1")} == pytest.approx(
            {name: expected[name] for name in ("lr", "beta1")}, rel=1e-12
        )
        for name in ("ce", "kd", "gradient_norm"):
            assert line[name] == pytest.approx(expected[name], rel=2e-5), (line["step"], name)
    parts = [line["parts"] for line in lines if line["kind"] == "validation"]
    assert np.array(parts) == pytest.approx(np.array(plain.validations), rel=2e-5)
    assert outcome.results.best_step == plain.kept
    last = load_file(tmp_path / "partial" / "last" / "model.safetensors")
    changes = {name: weights - before[name] for name, weights in plain.weights.items()}
    apart = sum(float(((last[name] - before[name]) - change).pow(2).sum()) for name, change in changes.items())
    assert math.sqrt(apart) < 0.02 * math.sqrt(sum(float(change.pow(2).sum()) for change in changes.values()))
