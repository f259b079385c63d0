"""The two protocols as one table: what the published code does, and what the paper describes.

Each field is one trap of the released code (DEVIATIONS.md has the same numbers). Nothing else in the kit asks which
protocol it runs under: the fields travel as named settings in every spec and manifest.
"""

from dataclasses import dataclass
from typing import Literal

from essence.settings import GraderName, ProtocolName


@dataclass(frozen=True)
class Protocol:
    """Values of the settings in which the two protocols differ."""

    applies_gradient_accumulation: bool
    """Trap 1: the released code parses the accumulation and never uses it, so its batch is that many times smaller."""
    keep_context: bool
    """Trap 3: for middle and right spans, keep the question and everything before the span as context."""
    keep_generation_header: bool
    """Trap 5: a stray assistant header ends every full row."""
    supervise_end_of_sequence: bool
    """Trap 6: padding with eos masks the true end of sequence."""
    stop_at_turn_end: bool
    """Trap 6: a Base student's own stop token is not the trained one."""
    validation_view: Literal["same", "full"]
    """Trap 8: validation rows are truncated like the training rows."""
    cot_includes_next_token: bool
    """Trap 9: CoT and P+CoT supervise one token of the answer."""
    left_pad_multiple: int
    """Trap 23: rows are padded on the left to a multiple of this, so the first token of most rows is a label, predicted
    from a pad that sees nothing; 0 = the first token is never a label."""
    misordered_markers: Literal["train", "skip"]
    """Trap 24: rows with `</think>` before `<think>` are trained on."""
    markers: Literal["exact", "lenient"]
    """Trap 18: markers with other newlines around them are not replaced."""
    faulty_rows: Literal["keep", "reject"]
    """Trap 19: rows that the chat template garbles, or that repeat another, are trained on."""
    may_stop_loops: bool
    """Not a trap: the released code lets a completion that repeats itself run to the cap, so `stop_loops` is for the
    corrected protocol alone."""
    order_seed: int | Literal["cell"]
    """Trap 21: epoch e reads the rows in the order of `torch.randperm` under this seed + e; `cell`: the cell's seed."""
    order_multiple: int
    """Trap 21: four GPUs read equally many rows, so an epoch's order is filled up from its start to a multiple of 4."""
    checkpoint_ranks: int
    """Trap 22: a checkpoint is kept where each of four GPUs finds its own quarter of the validation rows improved; of
    one alone, that is the lowest mean."""
    grader: GraderName
    """Trap 20: lighteval's own copy of math-verify reads some answers otherwise."""
    evaluated_checkpoints: tuple[Literal["best", "last"], ...]
    """Trap 8: the corrected protocol reports the last checkpoint beside the selected one."""


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "released": Protocol(
        applies_gradient_accumulation=False,
        keep_context=False,
        keep_generation_header=True,
        supervise_end_of_sequence=False,
        stop_at_turn_end=False,
        validation_view="same",
        cot_includes_next_token=True,
        left_pad_multiple=16,
        misordered_markers="train",
        markers="exact",
        faulty_rows="keep",
        may_stop_loops=False,
        order_seed=42,
        order_multiple=4,
        checkpoint_ranks=4,
        grader="lighteval-0.10",
        evaluated_checkpoints=("best",),
    ),
    "corrected": Protocol(
        applies_gradient_accumulation=True,
        keep_context=True,
        keep_generation_header=False,
        supervise_end_of_sequence=True,
        stop_at_turn_end=True,
        validation_view="full",
        cot_includes_next_token=False,
        left_pad_multiple=0,
        misordered_markers="skip",
        markers="lenient",
        faulty_rows="reject",
        may_stop_loops=True,
        order_seed="cell",
        order_multiple=1,
        checkpoint_ranks=1,
        grader="math-verify",
        evaluated_checkpoints=("best", "last"),
    ),
}
