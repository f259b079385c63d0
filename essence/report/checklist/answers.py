"""A venue's questions with their answers, as text, LaTeX and JSON."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from essence.report.checklist.known_facts import FACTS, NOTHING_OF, Facts, KnownFact, verdicts
from essence.report.checklist.venues import Venue
from essence.report.claims.verdict import ClaimVerdict
from essence.report.results.records import Results

NOT_KNOWN = "not known"
MOST_STAGES = 3
"""Manifests that are named for one sentence; `--json` has all."""
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\`{}", "[": "{[}", "]": "{]}", "\u00a0": "~", "–": "--", "—": "---",
    "→": r"$\rightarrow$", "×": r"$\times$", "·": r"$\cdot$", "±": r"$\pm$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$",
    "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\ldots{}", "©": r"\copyright{}",
}  # fmt: skip
"""Characters that LaTeX reads as something else, and those that its first fonts have under another name."""
ACCENTED = {chr(number) for number in range(0xC0, 0x100)} - set("ÐÞðþ×÷")
"""Letters beside ASCII that pdflatex prints without a package."""
JOINED = ("--", "''", ",,", "``", "?`", "!`")
"""Pairs that LaTeX prints as one sign, as the hyphens of `--engine`."""


@dataclass(frozen=True)
class Answered:
    """One question with what the records say."""

    number: str
    asks: str
    facts: tuple[KnownFact, ...]
    open: str
    """What no record can tell; empty where nothing is left."""

    @property
    def known(self) -> tuple[KnownFact, ...]:
        return tuple(fact for fact in self.facts if fact.known)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What is not known, each without a full stop."""
        found = [fact.sentence.rstrip(".") for fact in self.facts if not fact.known]
        return (*found, *((self.open,) if self.open else ()))


def answer(venue: Venue, results: Results, judged: Sequence[ClaimVerdict] | None = None) -> list[Answered]:
    """Every question of a venue, answered from the records of one experiment; `judged`: its verdicts, where known."""
    told: dict[str, Callable[[Results], Facts]] = {**FACTS, "verdicts": partial(verdicts, judged=judged)}
    facts = {name: made(results) or [KnownFact(NOTHING_OF[name], known=False)] for name, made in told.items()}
    return [
        Answered(
            question.number,
            question.asks,
            tuple(dict.fromkeys(fact for name in question.facts for fact in facts[name])),
            question.open,
        )
        for question in venue.questions
    ]


def as_text(venue: Venue, results: Results, answers: Sequence[Answered]) -> str:
    """Lines for a form of a conference, each sentence followed by the manifests that say so."""
    lines = [venue.title, *_lead(results), ""]
    for one in answers:
        lines.append(f"{one.number}  {one.asks}")
        lines += [f"    {fact.sentence}{_places(fact)}" for fact in one.known]
        lines += [f"    {NOT_KNOWN}: {words}" for words in one.unknown]
        if not one.known and not one.unknown:
            lines.append(f"    {NOT_KNOWN}")
        lines.append("")
    return "\n".join(lines)


def as_latex(venue: Venue, results: Results, answers: Sequence[Answered]) -> str:
    """A part of a document that needs no package, for \\input."""
    lines = ["% Made by `invoke checklist`; for \\input into a document. It needs no package."]
    lines += [rf"\section*{{{latex(venue.title)}}}", *(latex(line) for line in _lead(results))]
    for one in answers:
        lines += [rf"\paragraph{{{latex(one.number)} {latex(one.asks)}}}", r"\begin{itemize}"]
        lines += [rf"\item {latex(fact.sentence)}{_latex_places(fact)}" for fact in one.known]
        lines += [rf"\item \emph{{{NOT_KNOWN}:}} {latex(words)}" for words in one.unknown]
        if not one.known and not one.unknown:
            lines.append(rf"\item \emph{{{NOT_KNOWN}}}")
        lines.append(r"\end{itemize}")
    return "\n".join(lines) + "\n"


def as_record(venue: Venue, results: Results, answers: Sequence[Answered]) -> dict[str, object]:
    """Plain JSON, with every manifest of every sentence."""
    return {
        "venue": venue.title,
        "experiment": results.experiment,
        "questions": [
            {
                "number": one.number,
                "asks": one.asks,
                "answers": [
                    {"sentence": fact.sentence, "manifests": list(map(_path, fact.stages))} for fact in one.known
                ],
                "not_known": list(one.unknown) or ([] if one.known else [NOT_KNOWN]),
            }
            for one in answers
        ],
    }


def latex(words: str) -> str:
    """A text that LaTeX prints as it is, on one line, so that it stays one paragraph.

    A letter that it cannot print without a package is named: `[CYRILLIC SMALL LETTER ZHE]`.
    """
    made = [_printed(sign) for sign in unicodedata.normalize("NFC", words)]
    pairs = zip_longest(made, made[1:], fillvalue="")
    return "".join(f"{one}{{}}" if one[-1] + after[:1] in JOINED else one for one, after in pairs)


def _printed(sign: str) -> str:
    if sign in LATEX:
        return LATEX[sign]
    if not sign.isprintable():
        return " "
    return sign if sign.isascii() or sign in ACCENTED else f"{{[}}{unicodedata.name(sign, '?')}{{]}}"


def _lead(results: Results) -> list[str]:
    done = sum(stage.manifest is not None for stage in results.stages)
    lines = [
        f"Experiment {results.experiment}: {done} of {len(results.stages)} planned stages are finished. Paths are of "
        f"its run directory, {results.run_dir.name}/.",
        "What no record tells is “not known” and for the authors to answer.",
    ]
    refused = [stage.id for stage in results.refused]
    return lines + (
        [f"Not counted, because their records cannot be believed: {', '.join(refused)}."] if refused else []
    )


def _path(stage: str) -> str:
    return f"stages/{stage}/manifest.json"


def _named(fact: KnownFact) -> tuple[list[str], str]:
    """Paths of the first manifests, and how many more there are."""
    left = len(fact.stages) - MOST_STAGES
    return [_path(stage) for stage in fact.stages[:MOST_STAGES]], f" and {left} more" if left > 0 else ""


def _places(fact: KnownFact) -> str:
    paths, more = _named(fact)
    return f" [{', '.join(paths)}{more}]" if paths else ""


def _latex_places(fact: KnownFact) -> str:
    """In small type, with breaks where a path has a slash or a hyphen."""
    paths, more = _named(fact)
    if not paths:
        return ""
    shown = [latex(path).replace("/", r"/\allowbreak{}").replace("-", r"-\allowbreak{}") for path in paths]
    return rf" {{\footnotesize [\texttt{{{', '.join(shown)}}}{latex(more)}]}}"
