r"""Where a trace first states its boxed answer: the first complete `\boxed{...}` with the content of the last one."""

OPENING = "\\boxed{"
LONGEST_CONTENT = 500
"""Characters; a brace that is not closed within them is not closed."""


def first_statement(text: str, start: int) -> int:
    """Index of the closing brace of the answer's first statement at or after `start`, -1 where nothing is boxed.

    What stands before `start` (the question, which may ask for a box) is not looked at; empty boxes are no answers.
    """
    boxes: list[tuple[int, str]] = []
    place = text.find(OPENING, start)
    while place >= 0:
        opened = place + len(OPENING)
        closing = _closing_brace(text, opened)
        if closing > opened:
            boxes.append((closing, "".join(text[opened:closing].split())))
        place = text.find(OPENING, opened)
    return next((closing for closing, content in boxes if content and content == boxes[-1][1]), -1)


def _closing_brace(text: str, opened: int) -> int:
    """Index of the brace that closes the one before `opened`, -1 where there is none."""
    depth = 1
    for place in range(opened, min(len(text), opened + LONGEST_CONTENT)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place
    return -1
