"""Find the answer in a completion as math-verify does, but from the end of the text and each expression only once.

math-verify's patterns, their order of preference and its parsing are used as they are. What is added changes no answer:

- Where the last match wins, earlier text is read only if the later text held nothing that parses. The text is cut
  where no match can cross (`essence/evaluation/answer_search.py`), so that a piece is read as it is within the whole.
- Patterns whose fixed word or sign the text lacks are not run, and a formula with a box is looked for around boxes.
- An expression that was parsed before is not parsed again.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

BOX = r"\boxed{"
BOXED_FORMULA = r"(?:(?:(?<!\\)\$\$(?P<first_latexDisplayDollar>(?:[^$]|\$(?!\$))*?\\boxed{"
"""How the pattern for a formula with a box in it begins; all its alternatives have the box."""
FORMULA_GROUP, FORMULA_SIGNS = "first_latexDisplayDollar", "$\\["
"""A group of each pattern that needs a formula or a fraction, and the signs that such a match has at least one of."""
SEEN_BEHIND = 2
"""Characters behind a boundary that patterns are shown: the longest sign that a match can end before."""
CACHED_CHARACTERS = 1_000
"""Longer matches are hardly ever seen twice."""
CACHED_EXPRESSIONS = 8_192
LAST_MATCH_PRIORITY = 300
"""Of math-verify's patterns that need no words around the answer: numbers, expressions, LaTeX."""
_INTEGER = re.compile(r"\\boxed\{([1-9]\d{0,17})\}|([1-9]\d{0,17})")
_ANSWER, _FINAL_ANSWER = re.compile("(?i:answer)"), re.compile("(?i:final answer)")


class Pattern(NamedTuple):
    """One of math-verify's patterns."""

    regex: re.Pattern[str]
    target: Any
    """What it looks for: math-verify's LatexExtractionConfig or ExprExtractionConfig."""
    priority: int
    """Lower ones are tried first."""


@dataclass(frozen=True)
class Found:
    """What a pattern matched: all that the parsing sees of it, so equal ones parse alike."""

    target: Any
    groups: tuple[tuple[str, str | None], ...]

    def groupdict(self) -> dict[str, str | None]:
        """As `re.Match.groupdict`, which is all that math-verify asks of a match."""
        return dict(self.groups)


@dataclass(frozen=True)
class Answer:
    """The answer of a completion."""

    found: Found
    text: str | None
    """The first matched text, whether or not it parsed; None where no text is kept."""
    timeout_s: int

    def parsed(self) -> list[Any]:
        """As math-verify's `parse` returns it: the expression if there is one, then the text."""
        expression, _ = parse_found(self.found, self.timeout_s)
        return [part for part in (expression, self.text) if part is not None]


@lru_cache(maxsize=4)
def patterns(boxed_priority: int) -> tuple[Pattern, ...]:
    """math-verify's patterns for LaTeX and plain expressions, by priority; `boxed_priority` is that of `\\boxed`."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig
    from math_verify.parser import get_extraction_regexes

    targets = [LatexExtractionConfig(boxed_match_priority=boxed_priority), ExprExtractionConfig()]
    made = [
        Pattern(regex, target, priority)
        for regexes, target in get_extraction_regexes(targets)
        for regex, priority in regexes
    ]
    return tuple(sorted(made, key=lambda pattern: pattern.priority))


def find_answer(text: str, boxed_priority: int, timeout_s: int, keep_text: bool, skip_broken: bool) -> Answer | None:
    """The rightmost match that parses, of the first priority that has one; None where there is none.

    keep_text: go on with the text of the first match where none parses (math-verify's default).
    skip_broken: pass over a number that sympy refuses, such as one of 5,000 digits, where otherwise ValueError is
    raised.
    """
    first: Answer | None = None
    kept: str | None = None
    for _, group in groupby(_worth_running(patterns(boxed_priority), text), key=lambda pattern: pattern.priority):
        for found in _rightmost_first(tuple(group), text):
            try:
                expression, shown = parse_found(found, timeout_s)
            except ValueError:
                if not skip_broken:
                    raise
                continue
            if keep_text and kept is None and shown:
                kept = shown
                first = Answer(found, kept, timeout_s)
            if expression is not None:
                return Answer(found, kept, timeout_s)
    return first


def parse_found(found: Found, timeout_s: int) -> tuple[Any, str]:
    """What math-verify makes of a match: (sympy expression or None, text)."""
    if sum(len(value) for _, value in found.groups if value) > CACHED_CHARACTERS:
        return _parse(found, timeout_s)
    return _parse_once(found, timeout_s)


def _parse(found: Found, timeout_s: int) -> tuple[Any, str]:
    from math_verify.parser import extract_match

    digits = _plain_integer(found)
    if digits is not None:
        from sympy import Integer

        return Integer(int(digits)), digits
    parsed: tuple[Any, str] = extract_match(found, found.target, timeout_s)
    return parsed


def _plain_integer(found: Found) -> str | None:
    """The digits where all that was matched is an integer, in a box or bare, which needs no grammar of LaTeX."""
    matched = [value for name, value in found.groups if value]
    plain = _INTEGER.fullmatch(matched[0]) if len(matched) == 1 else None
    return plain.group(1) or plain.group(2) if plain else None


_parse_once = lru_cache(maxsize=CACHED_EXPRESSIONS)(_parse)


def _worth_running(all_patterns: Sequence[Pattern], text: str) -> list[Pattern]:
    """Leave out the patterns whose fixed word is not in the text."""
    boxed, answer = BOX in text, _ANSWER.search(text) is not None
    final = answer and _FINAL_ANSWER.search(text) is not None
    return [
        pattern
        for pattern in all_patterns
        if (boxed or r"\\boxed{" not in pattern.regex.pattern)
        and (answer or not pattern.regex.pattern.startswith("(?i:answer)"))
        and (final or not pattern.regex.pattern.startswith("(?i:final answer"))
    ]


def _rightmost_first(group: Sequence[Pattern], text: str) -> Iterator[Found]:
    """All matches of some patterns, by their end from the last to the first; of equal ends the earlier start first."""
    local = all(pattern.priority == LAST_MATCH_PRIORITY for pattern in group)
    for start, end in pieces(text) if local else ((0, len(text)),):
        matches = [
            (match, pattern.target) for pattern in group for match in _matches_within(pattern.regex, text, start, end)
        ]
        matches.sort(key=lambda found: (found[0].end(), -found[0].start()), reverse=True)
        for match, target in matches:
            yield Found(target, tuple(match.groupdict().items()))


def _matches_within(regex: re.Pattern[str], text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """Matches that begin from `start` to before `end`, a boundary that none can cross, or the end of the text."""
    if regex.pattern.startswith(BOXED_FORMULA):
        yield from _around_boxes(regex, text)
        return
    if FORMULA_GROUP in regex.pattern and not any(text.find(sign, start, end) >= 0 for sign in FORMULA_SIGNS):
        return
    # What comes after a boundary is seen, so that no pattern takes it for the end of the text.
    for match in regex.finditer(text, start, end + SEEN_BEHIND):
        if match.start() < end:
            yield match


def _around_boxes(regex: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches of the pattern for formulas with a box in them, looked for only where one with the next box can begin."""
    position = 0
    while (box := text.find(BOX, position)) >= 0:
        match = regex.search(text, max(position, first_start_around(text, box)))
        if match is None:
            return
        yield match
        position = match.end()


PIECE_CHARACTERS = 2_000
"""A piece has about this many characters, or as many more as there is no place to cut."""
_JOINS = frozenset("andorpercentPercentagepct")
"""Letters of the words that join two formulas, or that follow a number or a formula."""
_OUTSIDE_FORMULAS = _JOINS | frozenset("frac\\{}.,:+-*×/^()÷=%_$€£¥₹₽₪₩₫฿₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₴₵₶₷₸₹₺₻₼₽₾₿")
"""All that a match can hold outside a formula, beside digits and white space."""
_OPENS = "$\\["
"""Every formula begins with one of these."""


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of pieces of the text from its end to its beginning, cut at boundaries."""
    displays = text.find("$$"), text.rfind("$$")
    end = len(text)
    while end > 0:
        start = _boundary_before(text, end - PIECE_CHARACTERS, displays)
        yield start, end
        end = start


def _boundary_before(text: str, position: int, displays: tuple[int, int]) -> int:
    """The last boundary that is not behind a position; 0 where there is none."""
    while position > 0:
        line = text.rfind("\n", 0, position) + 1
        if not _within_display(text, line, displays):
            # Behind the first sign of a formula, all of the line may be in one.
            opened = min((at for sign in _OPENS if (at := text.find(sign, line, position)) >= 0), default=position)
            for place in range(min(opened, position), line, -1):
                if _cuts_line(text[place - 1]):
                    return place
            if line > 0 and _begins_anew(text[line]):
                return line
        position = line - 1
    return 0


def _within_display(text: str, position: int, displays: tuple[int, int]) -> bool:
    """True when a position may be in `$$..$$` or `\\[..\\]`, which go over lines.

    displays: first and last position of `$$` in the text.
    """
    if displays[0] < position <= displays[1]:
        return True
    return text.rfind("\\[", 0, position) > text.rfind("\\]", 0, position)


def _cuts_line(character: str) -> bool:
    """True when a character can be in a match only within a formula: outside of one, a piece can begin behind it."""
    return character not in _OUTSIDE_FORMULAS and not character.isspace() and not character.isnumeric()


def _begins_anew(character: str) -> bool:
    """True when no match goes on with this as the first character of a line.

    Outside `$$..$$` and `\\[..\\]` a line ends only between two formulas joined by `and`, `or` or a comma, before a
    percent sign or word, or in a plain expression of digits and operators.
    """
    return character.isascii() and character.isalpha() and character not in "Paop"


def first_start_around(text: str, box: int) -> int:
    """A position before which no match can begin that has this box, the first one in it, in a formula.

    A formula in a line begins in the line, or with the line end before it; `$$` begins at the last `$$`, `\\[` behind
    the last `\\]`.
    """
    starts = [max(0, text.rfind("\n", 0, box))]
    if (dollars := text.rfind("$$", 0, box)) >= 0:
        starts.append(max(0, dollars - 1))
    closed = max(0, text.rfind("\\]", 0, box) - 1)
    if (opened := text.find("\\[", closed, box)) >= 0:
        starts.append(opened)
    return min(starts)
