"""How long the completions of finished evaluations are: what the cost of others is estimated with."""

from collections.abc import Iterable

from essence.errors import RecordError
from essence.plan.stage_plan import Plan
from essence.plan.times import Lengths
from essence.record.evaluation_records import ProblemCount
from essence.record.plan_record import EvaluationEntry
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import GradeManifest, read_manifest


def measured_lengths(evaluations: Iterable[EvaluationEntry], run_directory: RunDirectory, cap: int) -> Lengths | None:
    """Mean and mean square over all completions of those that are finished; None where none is.

    Of a problem its mean length and how many of its completions reached the cap are known: the others are taken to be
    of one length, so the mean square is a little too low.
    """
    problems = [one for entry in evaluations for one in _problems(entry, run_directory)]
    found = [
        (one.samples, float(one.tokens or 0) / one.samples, _mean_square(one, cap)) for one in problems if one.samples
    ]
    if not (count := sum(samples for samples, _, _ in found)):
        return None
    mean = sum(samples * tokens for samples, tokens, _ in found) / count
    square = sum(samples * squared for samples, _, squared in found) / count
    return Lengths(mean, square) if mean else None


def lengths_of(plan: Plan, run_directory: RunDirectory) -> Lengths | None:
    """Of all cells of a plan that are finished; baselines, which end in other ways, do not count."""
    cap = plan.loaded.experiment.evaluation.max_new_tokens
    return measured_lengths((one for cell in plan.cells for one in cell.evaluations), run_directory, cap)


def _problems(entry: EvaluationEntry, run_directory: RunDirectory) -> list[ProblemCount]:
    folder = run_directory.stage(entry.grade)
    if not folder.done:
        return []
    try:
        manifest = read_manifest(folder.manifest)
    except RecordError:
        return []
    return [one for one in manifest.results.per_problem if one.tokens] if isinstance(manifest, GradeManifest) else []


def _mean_square(one: ProblemCount, cap: int) -> float:
    tokens, capped = float(one.tokens or 0), min(one.at_cap or 0, one.samples)
    rest = one.samples - capped
    of_rest = max(0.0, tokens - capped * cap) / rest if rest else 0.0
    return (capped * float(cap) ** 2 + rest * of_rest**2) / one.samples
