"""Thought and solution markers: as the released code replaces them, and as they are read properly.

`replace_exactly` is the published replacement of exact strings. `split_trace` takes the same markers, or `<think>` and
`</think>`, with whatever white space is around them, and gives question, thought and answer or one named reason.
"""

from dataclasses import dataclass

from essence.data.reasons import Exchange, Reason

THINK, END_THINK = "<think>", "</think>"
THOUGHT_MARKERS = (("<|begin_of_thought|>", THINK), ("<|end_of_thought|>", END_THINK))
BEGIN_SOLUTION, END_SOLUTION = "<|begin_of_solution|>", "<|end_of_solution|>"
EXACT_REPLACEMENTS = ((f"{BEGIN_SOLUTION}\n\n", ""), (f"\n\n{END_SOLUTION}", ""), *THOUGHT_MARKERS)
"""As released, in its order: what is removed can leave a thought marker behind, which is then replaced. Solution
markers with other newlines around them stay in the text; `has_solution_marker` finds them."""
CHAT_MARKUP = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""Tokens of the Qwen chat format, which the tokenizer takes for markup wherever they are."""


@dataclass(frozen=True)
class Trace:
    """One question with its worked answer; none of the texts is empty or has white space around it."""

    user: str
    thought: str
    answer: str

    @property
    def exchange(self) -> Exchange:
        """With the markers as the Qwen chat template lays them."""
        return Exchange(self.user, f"{THINK}\n{self.thought}\n{END_THINK}\n\n{self.answer}")


def replace_exactly(text: str) -> str:
    """The published data sets' markers to `<think>` and `</think>`, by exact strings, as released."""
    for old, new in EXACT_REPLACEMENTS:
        text = text.replace(old, new)
    return text


def has_solution_marker(text: str) -> bool:
    """True when a solution marker is in the text; after `replace_exactly`, one that it missed."""
    return BEGIN_SOLUTION in text or END_SOLUTION in text


def split_trace(exchange: Exchange) -> Trace | Reason:
    """Question, thought and answer, or the first reason why the row has no clear ones."""
    user, text = exchange.user, exchange.assistant
    for marker, think in THOUGHT_MARKERS:
        text = text.replace(marker, think)
    if reason := _unusable(user, text) or _marker_fault(text):
        return reason
    before, _, rest = text.partition(THINK)
    thought, _, answer = rest.partition(END_THINK)
    if before.strip():
        return Reason.TEXT_BEFORE_THOUGHT
    if not thought.strip():
        return Reason.EMPTY_THOUGHT
    solution = None if has_solution_marker(thought) else _without_solution_markers(answer)
    if solution is None:
        return Reason.UNPAIRED_SOLUTION_MARKERS
    return Trace(user, thought.strip(), solution) if solution else Reason.EMPTY_ANSWER


def _unusable(user: str, text: str) -> Reason | None:
    """What is wrong whatever the markers are."""
    if not user.strip():
        return Reason.EMPTY_QUESTION
    if not text.strip():
        return Reason.EMPTY_ANSWER
    if THINK in user or END_THINK in user:
        return Reason.MARKER_IN_QUESTION
    if any(markup in user or markup in text for markup in CHAT_MARKUP):
        return Reason.CHAT_MARKUP
    return None


def _marker_fault(text: str) -> Reason | None:
    """Why the thought markers are not one pair in order."""
    openings, closings = text.count(THINK), text.count(END_THINK)
    if openings == closings == 1:
        return None if text.index(THINK) < text.index(END_THINK) else Reason.WRONG_MARKER_ORDER
    if not closings:
        return Reason.NO_CLOSING_MARKER if openings else Reason.NO_THOUGHT
    if closings > 1:
        return Reason.TWO_CLOSING_MARKERS
    return Reason.TWO_OPENING_MARKERS if openings else Reason.NO_OPENING_MARKER


def _without_solution_markers(answer: str) -> str | None:
    """The answer without its one pair of solution markers, if it has any; None where they are no pair."""
    counts = answer.count(BEGIN_SOLUTION), answer.count(END_SOLUTION)
    if counts == (0, 0):
        return answer.strip()
    before, _, rest = answer.partition(BEGIN_SOLUTION)
    solution, _, after = rest.partition(END_SOLUTION)
    if counts != (1, 1) or END_SOLUTION in before:
        return None
    return "\n\n".join(part.strip() for part in (before, solution, after) if part.strip())
