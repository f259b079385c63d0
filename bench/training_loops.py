"""The loops that bench/train.py measures the kit's beside, each as its users have it, and what each minimises."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from essence.data.truncation import Example

PADDING_MULTIPLE = 16
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-8, 0.05, 1.0
Losses = list[float]
LossOf = Callable[[Any, Any, dict[str, Any], Tensor], Tensor]
OBJECTIVES = {
    "released": "(CE + KD) / 2, KD the cross-entropy with the teacher; mean over a row's tokens, then over rows",
    "kit": "as released",
    "liger": "(CE + KL) / 2, KL = KD less the teacher's entropy: the gradient of released, another value",
    "trl": "KL alone, mean over all tokens of the step: no CE term, which this trainer does not have",
}
"""What the losses of each loop are of."""


@dataclass(frozen=True)
class LoopWork:
    """The same for every loop; each of its steps is all rows."""

    rows: list[Example]
    steps: int
    device: torch.device


class Clock(Protocol):
    """What marks the end of each step."""

    def mark(self) -> None: ...


def released(work: LoopWork, student: Any, teacher: Any, clock: Clock) -> Losses:
    """Whole logits of both models, `log(softmax())`."""
    return one_row_loop(work, student, teacher, clock, released_loss)


def liger(work: LoopWork, student: Any, teacher: Any, clock: Clock) -> Losses:
    """The released loop with Liger's chunked divergence."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    divergence = LigerFusedLinearJSDLoss(0.5, 0.5, beta=0.0, chunk_size=256, compiled=work.device.type == "cuda")

    def loss(student: Any, teacher: Any, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        with torch.no_grad():
            taught = teacher.base_model(**inputs).last_hidden_state[0, :-1]
        states = student.base_model(**inputs).last_hidden_state[0, :-1]
        weight, taught_weight = student.lm_head.weight.bfloat16(), teacher.lm_head.weight
        found: Tensor = divergence(states.bfloat16(), weight, taught.bfloat16(), taught_weight, labels)
        return found

    return one_row_loop(work, student, teacher, clock, loss)


def released_loss(student: Any, teacher: Any, inputs: dict[str, Any], labels: Tensor) -> Tensor:
    """(CE + KD) / 2 as the published formulas say it, on whole logits."""
    with torch.no_grad():
        taught = teacher(**inputs).logits
    logits = student(**inputs).logits
    seen = labels != -100
    ce = functional.cross_entropy(logits[0, :-1].float(), labels, ignore_index=-100)
    likely = torch.log(torch.softmax(logits[0, :-1].float(), dim=-1))
    kd = -(torch.softmax(taught[0, :-1].float(), dim=-1) * likely).sum(dim=-1)
    return 0.5 * ce + 0.5 * kd[seen].mean()


def one_row_loop(work: LoopWork, student: Any, teacher: Any, clock: Clock, loss_of: LossOf) -> Losses:
    """One row a forward pass, padded on the left, activation checkpointing, one update after all rows."""
    student.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False, fused=False
    )
    losses = []
    for _ in range(work.steps):
        total = 0.0
        for row in work.rows:
            padding = -row.input_ids.size % PADDING_MULTIPLE
            ids = torch.tensor([[0] * padding + row.input_ids.tolist()], device=work.device)
            labels = ids[0, 1:].clone()
            labels[:padding] = -100
            mask = (torch.arange(ids.shape[1], device=work.device) >= padding).long()[None]
            with torch.autocast(work.device.type, torch.bfloat16):
                inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
                loss = loss_of(student, teacher, inputs, labels) / len(work.rows)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.mark()
        losses.append(total)
    return losses


def trl(work: LoopWork, student: Any, teacher: Any, clock: Clock) -> Losses:
    """TRL's GKDTrainer on the rows' own tokens (`lmbda = 0`), forward KL (`beta = 0`), one row a pass.

    All else is as the trainer has it. TRL's DistillationTrainer, which never holds all logits, trains on tokens that
    the student generates, and on no others.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    rows = [{"input_ids": row.input_ids.tolist()} for row in work.rows] * work.steps
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, max_steps=work.steps, per_device_train_batch_size=1, save_strategy="no",
            gradient_accumulation_steps=len(work.rows), learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP_NORM, lmbda=0.0, beta=0.0, temperature=1.0, bf16=True, logging_steps=1,
            report_to="none", use_cpu=work.device.type == "cpu", disable_tqdm=True,
        )  # fmt: skip
        trainer = GKDTrainer(
            model=student, teacher_model=teacher, args=config, data_collator=one_row,
            train_dataset=Dataset.from_list(rows), processing_class=no_tokenizer(), callbacks=[Marks()],
        )  # fmt: skip
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def one_row(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A row as GKDTrainer wants it: its first token is the prompt, all others have a label."""
    ids = torch.tensor([rows[0]["input_ids"]])
    labels = ids.clone()
    labels[0, 0] = -100
    seen = torch.ones_like(ids)
    return {
        "input_ids": ids, "attention_mask": seen, "labels": labels,
        "prompts": ids[:, :1], "prompt_attention_mask": seen[:, :1],
    }  # fmt: skip


def no_tokenizer() -> Any:
    """One that the trainer asks for a padding token alone: the rows are ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
