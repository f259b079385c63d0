"""From a claim and what was measured to one word, and to what would decide where the interval is too wide."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from essence.report.claims.advice import advise
from essence.report.claims.definition import Claim, load_claims, load_questions
from essence.report.claims.evidence import Evidence
from essence.report.claims.gather import gather
from essence.report.claims.interim_looks import (
    Look,
    Looks,
    level_of,
    look_at,
    read_looks,
    record_looks,
    share_of,
)
from essence.report.claims.measures import MEASURES
from essence.report.claims.outcome import Measured, Outcome
from essence.report.results.records import Results

Verdict = Literal["reproduced", "not reproduced", "undecided", "not comparable", "shown, not judged", "not run"]
FAILURES = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What a measure can meet in results that nobody foresaw: its claim is undecided then, and says so."""
PROXY = "a proxy, counted by a stated rule, where the paper had a language model judge"
EQUAL_TOKENS = " (arms of an equal token_budget are there, and are compared by the kit's own questions alone)"
DECIDABLE = ("reproduced", "not reproduced", "undecided")
LEVEL = 0.05
NO_LOOKS = Looks()
HOLM = "outside what is accepted when judged alone, but not among {count} claims (Holm)"


@dataclass(frozen=True)
class ClaimVerdict:
    """One claim under one protocol."""

    claim: Claim
    protocol: str
    word: Verdict
    measured: Measured | None
    advice: str
    """What would decide, or which cells are missing; empty where the word stands."""
    would_decide: dict[str, int] = field(default_factory=dict)
    """The same as numbers: `seeds` of each arm, or `runs` (pairs)."""

    @property
    def where(self) -> str:
        """`in 2 of 30 settings`, where the paper's value is a mean over more of them."""
        settings = self.measured.settings if self.measured else 0
        if not self.claim.settings or self.word == "shown, not judged" or settings in (0, self.claim.settings):
            return ""
        return f"in {settings} of {self.claim.settings} settings"


def judge(results: Iterable[Results], claims: Sequence[Claim] | None = None) -> list[ClaimVerdict]:
    """Every claim under every protocol that anything was run under, in the order of the claims.

    claims: those of the paper (`experiments/claims.toml`) unless others are given; they are one family. Looks that the
    run directory has recorded count; this one is recorded by whoever shows it (`record_verdicts`).
    """
    read = list(results)
    evidence, looks = gather(read), read_looks(read)
    refused = len({stage.id for one in read for stage in one.refused})
    protocols = dict.fromkeys(group.key.protocol for one in read for group in one.groups)
    asked = load_claims() if claims is None else claims
    under = {name: [_judge(one, name, evidence.under(name), refused, looks) for one in asked] for name in protocols}
    corrected = {name: allow_for_number(verdicts) for name, verdicts in under.items()}
    return [corrected[name][place] for place in range(len(asked)) for name in protocols]


def judge_questions(results: Iterable[Results]) -> list[ClaimVerdict]:
    """The kit's own questions (`experiments/questions.toml`), judged as claims are: a family of their own."""
    return judge(results, load_questions())


def record_verdicts(results: Sequence[Results], verdicts: Iterable[ClaimVerdict]) -> None:
    """Write down in the run directory that these were shown: the next look at more of the same is another one."""
    record_looks(results, looks_of(verdicts))


def looks_of(verdicts: Iterable[ClaimVerdict]) -> list[Look]:
    """The looks that verdicts are; what was only shown is none."""
    given = (one for one in verdicts if one.measured and one.word in DECIDABLE)
    return [look for one in given if one.measured and (look := look_at(one.claim.id, one.protocol, one.measured))]


def _judge(claim: Claim, protocol: str, evidence: Evidence, refused: int = 0, looks: Looks = NO_LOOKS) -> ClaimVerdict:
    """One claim in a guard of its own: where it cannot be judged, the others and the page still stand."""
    try:
        return _judged(claim, protocol, evidence, refused, looks)
    except FAILURES as error:
        return ClaimVerdict(claim, protocol, "undecided", None, f"could not be judged: {error!r}; please report this")


def _judged(claim: Claim, protocol: str, evidence: Evidence, refused: int, looks: Looks) -> ClaimVerdict:
    outcome = at_this_look(claim, protocol, evidence, looks)
    if isinstance(outcome, str):
        elsewhere = MEASURES[claim.measure](claim.anywhere, evidence)
        if isinstance(elsewhere, Measured) and not evidence.inside(claim):
            why = PROXY if claim.measure == "proxy" else elsewhere.incomparable or elsewhere.why_open
            return ClaimVerdict(claim, protocol, "shown, not judged", elsewhere, why)
        note = f" ({refused} records are there but are not counted)" if refused and claim.measure != "none" else ""
        note += EQUAL_TOKENS if claim.grade != "kit" and claim.is_judged and evidence.equal_tokens_alone else ""
        return ClaimVerdict(claim, protocol, "not run", None, outcome + note)
    if not claim.is_judged:
        return ClaimVerdict(claim, protocol, "shown, not judged", outcome, PROXY)
    word = decide(outcome, claim.band)
    if word == "not comparable":
        return ClaimVerdict(claim, protocol, word, outcome, outcome.incomparable)
    if word != "undecided":
        return ClaimVerdict(claim, protocol, word, outcome, "")
    advice = advise(outcome, claim.band)
    return ClaimVerdict(claim, protocol, word, outcome, advice.sentence, advice.wanted)


def at_this_look(claim: Claim, protocol: str, evidence: Evidence, looks: Looks) -> Outcome:
    """What was measured, with the interval that this look has."""
    outcome = MEASURES[claim.measure](claim, evidence)
    look = look_at(claim.id, protocol, outcome) if isinstance(outcome, Measured) else None
    number = looks.number(look) if look else 1
    if number == 1:
        return outcome
    again = MEASURES[claim.measure](claim, evidence.at(level_of(number)))
    assert isinstance(again, Measured)
    return replace(again, look=number, outside=min(1.0, again.outside / share_of(number)))


def allow_for_number(verdicts: Sequence[ClaimVerdict]) -> list[ClaimVerdict]:
    """The primary claim at its own level; of the others, those fail that Holm's procedure leaves failing.

    Of many claims that all hold, one fails by chance more often than not if each is judged alone.
    """
    judged = [one for one in verdicts if one.measured and one.word in DECIDABLE]
    family = sorted((one for one in judged if not one.claim.primary), key=lambda one: one.measured.outside)  # type: ignore[union-attr]
    kept: set[str] = set()
    for place, one in enumerate(family):
        if one.measured is None or one.measured.outside > LEVEL / (len(family) - place):
            break
        kept.add(one.claim.id)
    advice = HOLM.format(count=len(family))
    return [
        replace(one, word="undecided", advice=advice)
        if one.word == "not reproduced" and not one.claim.primary and one.claim.id not in kept
        else one
        for one in verdicts
    ]


def decide(measured: Measured, band: tuple[float, float]) -> Verdict:
    """The word for an interval and the values that count as reproduced."""
    low, high = measured.estimate.low, measured.estimate.high
    if measured.incomparable:
        return "not comparable"
    if measured.why_open or measured.estimate.value is None or (low is None and high is None):
        return "undecided"
    if low is not None and high is not None and band[0] <= low and high <= band[1]:
        return "reproduced"
    if (high is not None and high < band[0]) or (low is not None and low > band[1]):
        return "not reproduced"
    return "undecided"
