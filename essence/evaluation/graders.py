"""The graders: what each takes for the answer of a completion, and when it equals the gold.

`math-verify` and `lighteval-0.10` use the patterns, parsing and comparison of math-verify 0.5.2, `math-verify-0.9`
on those of 0.9, which has a folder of its own (`essence/evaluation/graders_apart.py`). `lighteval-0.10` is the metric
`math_pass@1` of lighteval 0.10.0, behind the published scores, without lighteval itself, which needs torch and a
benchmark framework around 60 lines of difference:

- a boxed answer comes after the words "final answer is", as any plain match does, not beside it;
- no comparison of bare text where an answer does not parse;
- the comparison is called with prediction and gold swapped, and with the document in the place of the precision, so
  that comparing a decimal number with a fraction ends in an error and counts as wrong.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from essence.evaluation.answer_search import Answer, find_answer

Status = Literal["graded", "no answer", "timeout"]
PACKAGE = "math-verify"
"""The package that every grader's verdicts depend on."""
BOX = r"\boxed"
SHOWN_CHARACTERS = 200
MATH_VERIFY_TIMEOUT_S = 3
LIGHTEVAL_TIMEOUT_S = 5
"""Longest time the two give one expression to be parsed; their defaults."""
MATH_VERIFY_BOXED_PRIORITY = 50
LIGHTEVAL_BOXED_PRIORITY = 55
MATH_VERIFY_PRECISION = 6
NO_PRECISION = object()
"""Used where a number of digits is expected, as the document does in lighteval 0.10.0."""
_INTEGER = re.compile(r"[+-]?\d+")
_DOLLAR = re.compile(r"(?<!\\)\$")
"""A dollar that no backslash makes a sign of its own; as math-verify's patterns have it."""
_FORMULA = re.compile(
    r"(?<!\\)\$\$(?!\s*\$).+?(?<!\\)\$\$"
    r"|(?<!\\)\$(?![\s$])(?:\\.|[^$\n\\])*?(?<![\s\\])\$(?!\d)|(?<!\\)\$ (?:\\.|[^$\n\\])*? \$(?!\d)"
    r"|(?<!\\)\\\[.+?(?<!\\)\\\]|(?<!\\)\\\(.+?(?<!\\)\\\)",
    re.DOTALL,
)
"""A formula between LaTeX's own delimiters. Between single ones no white space follows the first or precedes the
last, unless both, and no digit follows it: `$5 and $6` are two prices."""


@dataclass(frozen=True)
class Verdict:
    """What a grader says about one completion."""

    correct: bool
    status: Status
    """`timeout`: the grader came to no end within its time (or memory); counts as wrong."""
    extracted: str | None
    """The answer as found in the completion, at most 200 characters; None where there is none."""
    answer: str | None
    """The answer as parsed, at most 200 characters: equal answers have the same; None where there is none."""
    boxed: bool = False
    """True when the answer was taken from a box."""


class UnreadableGoldError(Exception):
    """A grader cannot parse the gold answer."""


Grader = Callable[[str, str], Verdict]
NO_ANSWER = Verdict(correct=False, status="no answer", extracted=None, answer=None)
TIMED_OUT = Verdict(correct=False, status="timeout", extracted=None, answer=None)


def grade_with_math_verify(gold: str, completion: str) -> Verdict:
    """math-verify's `parse` and `verify` at their defaults: the last answer found, boxed ones first."""
    answer = _math_verify_answer(completion)
    if answer is None:
        _math_verify_gold(gold)
        return NO_ANSWER
    return _verdict(_equal_for_math_verify(gold, answer), answer)


def grade_with_lighteval(gold: str, completion: str) -> Verdict:
    """`math_pass@1` of lighteval 0.10.0, its traps included."""
    answer = _lighteval_answer(completion.strip())
    if answer is None:
        _lighteval_gold(gold)
        return NO_ANSWER
    return _verdict(_equal_for_lighteval(gold, answer), answer)


def grade_with_math_verify_09(gold: str, completion: str) -> Verdict:
    """`parse` and `verify` of math-verify 0.9 themselves, in a process that finds that version first."""
    from math_verify import parse, verify

    expected = _parsed_by_math_verify(gold_as_latex(gold))
    if not expected:
        raise UnreadableGoldError(gold)
    found = parse(completion)
    if not found:
        return NO_ANSWER
    shown = found[-1] if isinstance(found[-1], str) else repr(found[0])
    # As in its patterns, a box is preferred to all but the words "final answer is ... I hope".
    boxed = BOX in completion
    answer = str(found[0])[:SHOWN_CHARACTERS]
    return Verdict(bool(verify(expected, found)), "graded", shown[:SHOWN_CHARACTERS], answer, boxed)


GRADERS: dict[str, Grader] = {
    "math-verify": grade_with_math_verify,
    "lighteval-0.10": grade_with_lighteval,
    "math-verify-0.9": grade_with_math_verify_09,
}


def gold_as_latex(gold: str) -> str:
    """A gold as the graders want it: LaTeX between dollars; an integer, a box and what has delimiters as it is.

    A dollar that delimits nothing is a currency sign: `\\$36` and `$36` are LaTeX that begins with one. In the middle
    of a text (`it costs $5`) it is left, as math-verify reads prices in texts.
    """
    stripped = gold.strip()
    if not stripped or _INTEGER.fullmatch(stripped) or r"\boxed{" in stripped:
        return stripped
    dollars = [match.start() for match in _DOLLAR.finditer(_FORMULA.sub("", stripped))]
    if not dollars:
        return stripped if _FORMULA.search(stripped) else f"${stripped}{' ' * _ends_in_backslash(stripped)}$"
    if _DOLLAR.match(stripped) or _DOLLAR.match(stripped, len(stripped) - 1):
        return "$" + _DOLLAR.sub(r"\\$", stripped) + "$"
    return stripped


def _ends_in_backslash(text: str) -> bool:
    """True when a control space lost its space, and would make a sign of the dollar behind it."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _math_verify_answer(text: str) -> Answer | None:
    try:
        return find_answer(text, MATH_VERIFY_BOXED_PRIORITY, MATH_VERIFY_TIMEOUT_S, keep_text=True, skip_broken=False)
    except Exception:  # noqa: BLE001 - math-verify's own `parse` finds no answer where anything at all goes wrong
        return None


def _lighteval_answer(text: str) -> Answer | None:
    return find_answer(text, LIGHTEVAL_BOXED_PRIORITY, LIGHTEVAL_TIMEOUT_S, keep_text=False, skip_broken=True)


@lru_cache(maxsize=1024)
def _math_verify_gold(gold: str) -> list[Any]:
    return _parsed_gold(gold, _math_verify_answer(gold_as_latex(gold)))


@lru_cache(maxsize=1024)
def _parsed_by_math_verify(text: str) -> list[Any]:
    from math_verify import parse

    found: list[Any] = parse(text)
    return found


@lru_cache(maxsize=1024)
def _lighteval_gold(gold: str) -> list[Any]:
    return _parsed_gold(gold, _lighteval_answer(gold_as_latex(gold)))


def _parsed_gold(gold: str, answer: Answer | None) -> list[Any]:
    if answer is None:
        raise UnreadableGoldError(gold)
    return answer.parsed()


@lru_cache(maxsize=8_192)
def _equal_for_math_verify(gold: str, answer: Answer) -> bool:
    return _equal(_math_verify_gold(gold), answer.parsed(), MATH_VERIFY_PRECISION)


@lru_cache(maxsize=8_192)
def _equal_for_lighteval(gold: str, answer: Answer) -> bool:
    return _equal(answer.parsed(), _lighteval_gold(gold), NO_PRECISION)


def _equal(left: list[Any], right: list[Any], precision: object) -> bool:
    from math_verify import verify
    from sympy import Integer

    if isinstance(left[0], Integer) and isinstance(right[0], Integer):
        return bool(left[0] == right[0])  # as `verify` finds, after more work
    return bool(verify(left, right, precision=precision))


def _verdict(correct: bool, answer: Answer) -> Verdict:
    parsed = answer.parsed()
    shown = answer.text if answer.text is not None else repr(parsed[0])
    boxed = any(text and BOX in text for _, text in answer.found.groups)
    return Verdict(correct, "graded", shown[:SHOWN_CHARACTERS], str(parsed[0])[:SHOWN_CHARACTERS], boxed)
