"""The kit's own questions as people read them: rows as those of claims, with answers, in a table apart."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence.report.claims.claim_record import claim_record
from essence.report.claims.verdict import ClaimVerdict, Verdict
from essence.report.page.claims_table import STYLES, ClaimRow, claim_rows, once_trained

ANSWERS: dict[Verdict, str] = {"reproduced": "yes", "not reproduced": "no"}
"""Of a verdict; every other one is a word of its own."""
OF_THE_PAPER = {"grade", "reported", "accepted", "where", "settings_of_the_paper", "primary", "word"}
"""Of the record of a claim: what a question does not have, or has under another name."""
TITLE = "Questions of the kit’s own"
NEEDS_ARMS = "docs/arms.md has the arms that they need, and the experiments with them"
ONLY_SHOWN = ("shown, not judged", "not run")


def asked(judged: Sequence[ClaimVerdict]) -> bool:
    """Whether the cells of an experiment bear on any question; where none does, no table is shown."""
    return any(one.measured for one in judged)


def question_rows(judged: Sequence[ClaimVerdict]) -> list[ClaimRow]:
    """The rows in the order of the questions; `verdict` is the answer."""
    return [replace(row, verdict=ANSWERS.get(row.word, row.word), reported="") for row in claim_rows(judged)]


def questions_lead(judged: Sequence[ClaimVerdict]) -> str:
    """What the answers rest on, and what they are not."""
    lead = (
        "These are not claims of the paper. Yes: the whole 95 % interval lies inside what counts as yes. No: it lies "
        "outside, also when the number of questions is allowed for. Undecided: it lies across an edge, or rests on too "
        "little."
    )
    lead += once_trained(judged)
    if judged and all(one.word in ONLY_SHOWN for one in judged):
        lead += " Nothing here was run on real traces and problems: values are shown, and no question is answered."
    return lead


def question_record(judged: ClaimVerdict) -> dict[str, object]:
    """A row as plain numbers, for report.json: as of a claim, with `answer` and `yes` for its word and band."""
    record = claim_record(judged)
    kept = record.model_dump(exclude=OF_THE_PAPER)
    return {**kept, "answer": ANSWERS.get(judged.word, judged.word), "yes": record.accepted}


def print_questions(judged: Sequence[ClaimVerdict], console: Console) -> None:
    """The questions that were measured as a table, the others with what they need; a line where none was."""
    if not asked(judged):
        console.print(Text(f"{TITLE}: none was asked of these cells ({NEEDS_ARMS})", style="dim"))
        return
    rows = question_rows(judged)
    several = len({row.protocol for row in rows}) > 1
    table = Table(title=TITLE, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("Question", "Answer", "Yes if", "Ours", "Measured on"):
        table.add_column(name, header_style="dim", vertical="top", overflow="fold")
    for row in (row for row in rows if row.word != "not run"):
        title = Text(f"{row.title} ({row.protocol})" if several else row.title)
        if row.detail:
            title.append(f"\n{row.detail}", style="dim")
        table.add_row(title, Text(row.verdict, style=STYLES[row.word]), row.accepted, row.ours, row.count)
    console.print(table)
    console.print(Text(questions_lead(judged), style="dim"))
    for row in (row for row in rows if row.word == "not run"):
        suffix = f" ({row.protocol})" if several else ""
        console.print(Text(f"not run: {row.title}{suffix}: {row.detail}", style="dim"))
