"""Places in a completion that no match of math-verify's patterns can cross, and where a match around a box can begin.

Read from its end in pieces that are cut there, a text gives the matches that it gives as a whole. The rules follow from
what the patterns of the last priority (numbers, expressions, formulas, fractions) can be made of.
"""

from collections.abc import Iterator

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
    """Whether a position may lie in `$$..$$` or `\\[..\\]`, which go over lines.

    displays: first and last position of `$$` in the text.
    """
    if displays[0] < position <= displays[1]:
        return True
    return text.rfind("\\[", 0, position) > text.rfind("\\]", 0, position)


def _cuts_line(character: str) -> bool:
    """Whether a character can be in a match only within a formula: outside of one, a piece can begin behind it."""
    return character not in _OUTSIDE_FORMULAS and not character.isspace() and not character.isnumeric()


def _begins_anew(character: str) -> bool:
    """Whether no match goes on with this as the first character of a line.

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
