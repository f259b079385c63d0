"""Which claims a plan can decide before it runs: its cells with made-up results are measured as real ones are."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from essence.plan.stage_plan import CellPlan
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Scored, Setting, Trained
from essence.report.claims.gather import joined
from essence.report.claims.measures import MEASURES
from essence.report.claims.outcome import Measured
from essence.report.results.cost_forms import TrainingForm, unlike
from essence.report.results.records import COST_UNITS
from essence.settings import Resources
from essence.sizes.recomputation import Activations

PROBLEMS = 30
SHARES = np.linspace(0.3, 0.9, PROBLEMS)
"""Of a student that is far from any floor: what is asked is what the trainings allow, not what comes out."""


def foreseen(
    plans: Sequence[CellPlan], resources: Resources, claims: Sequence[Claim], activations: Mapping[str, Activations]
) -> str:
    """One line: which of the claims that these cells are about they can and cannot decide; empty where about none.

    activations: id of a training -> how it is to have them, where that is known.
    """
    evidence, in_one_form = made_of(plans, resources, activations), made_of(plans, resources, {})
    can: list[str] = []
    cannot: dict[str, list[str]] = defaultdict(list)
    for claim in (claim for claim in claims if claim.is_judged):
        measured = _measured(claim, evidence, plans)
        if not measured:
            if _measured(claim, in_one_form, plans):
                cannot[_unlike(claim, evidence, plans)].append(claim.id)
            continue
        reasons = [why_not(one) for one in measured]
        if all(reasons):
            cannot[reasons[0]].append(claim.id)
        else:
            can.append(claim.id)
    if not can and not cannot:
        return ""
    shut = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in cannot.items())
    return f"as planned it can decide: {', '.join(can) or 'nothing'}" + (f"; it cannot decide: {shut}" if shut else "")


def why_not(measured: Measured) -> str:
    """Why no result at all would give a verdict; empty where one could."""
    if measured.incomparable:
        return f"not comparable: {measured.incomparable.split(';')[0]}"
    if measured.why_open:
        return measured.why_open.split(":")[0]
    if measured.estimate.low is None and measured.estimate.high is None:
        return measured.estimate.method.removeprefix("no interval: ")
    return ""


def _measured(claim: Claim, evidence: Evidence, plans: Sequence[CellPlan]) -> list[Measured]:
    """Under each protocol under which these cells are about the claim."""
    outcomes = [MEASURES[claim.measure](claim, evidence.under(name)) for name in _protocols(plans)]
    return [one for one in outcomes if isinstance(one, Measured)]


def _unlike(claim: Claim, evidence: Evidence, plans: Sequence[CellPlan]) -> str:
    """Why no cost at the claim's proportion is beside one at 1.0; what fits a GPU is a question of memory."""
    about = [one for name in _protocols(plans) for one in evidence.under(name).trainings_of(claim)]
    forms = [[one.form for one in about if one.lsp == lsp] for lsp in (claim.lsp, 1.0)]
    return f"trainings run unlike: {unlike(claim.cost or 'memory', *forms)}"


def made_of(plans: Sequence[CellPlan], resources: Resources, activations: Mapping[str, Activations]) -> Evidence:
    """The evidence that these cells would give, with results that are made up."""
    runs: dict[Hashable, dict[str, Scored]] = defaultdict(dict)
    trained = {}
    for number, plan in enumerate(plans):
        training = _training(plan)
        trained[training] = _trained(plan, number, resources, activations.get(training))
        for one in _scored(plan, number):
            runs[one.setting, one.checkpoint, one.span, one.sections, one.lsp].setdefault(training, one)
    return Evidence(tuple(joined(list(seeds.values())) for seeds in runs.values()), tuple(trained.values()))


def _protocols(plans: Sequence[CellPlan]) -> list[str]:
    return list(dict.fromkeys(plan.cell.protocol for plan in plans))


def _training(plan: CellPlan) -> str:
    """Its id; the one at LSP 1.0 is the same for all spans."""
    return plan.stages["train"]


def _setting(plan: CellPlan, benchmark: str) -> Setting:
    cell = plan.cell
    recipe = f"{cell.train_rows} rows, {cell.token_budget} tokens"
    return Setting(cell.dataset, cell.teacher, cell.student, cell.protocol, benchmark, recipe)


def _scored(plan: CellPlan, number: int) -> Iterator[Scored]:
    """On each benchmark; no two trainings score the same."""
    cell = plan.cell
    shares = {f"p{place}": float(share) - 0.001 * (number % 97) for place, share in enumerate(SHARES)}
    for one in plan.evaluations:
        yield Scored(
            setting=_setting(plan, one.benchmark),
            checkpoint=one.checkpoint,
            span=cell.span,
            sections=cell.sections,
            lsp=cell.lsp,
            shares=(shares,),
            trainings=(_training(plan),),
            samples=one.samples,
            stages=(one.grade,),
            budget=cell.token_budget is not None,
        )


def _trained(plan: CellPlan, number: int, resources: Resources, activations: Activations | None) -> Trained:
    cell = plan.cell
    form = TrainingForm(loss=resources.loss.form, on_gpu=resources.gpus > 0)
    if activations:
        form = replace(form, recomputed=activations.recomputed, pass_tokens=activations.micro_batch_tokens)
    return Trained(
        setting=_setting(plan, ""),
        span=cell.span,
        sections=cell.sections,
        lsp=cell.lsp,
        seed=cell.seed,
        cost=dict.fromkeys(COST_UNITS, cell.lsp + 0.001 * number),
        stages=(_training(plan),),
        form=form,
        validation_ce=1.0 + 0.001 * number,
        budget=cell.token_budget is not None,
    )
