"""Stage `grade`: one verdict per sample in verdicts.jsonl, and the accuracy with its interval; without torch."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

from essence.errors import InputError, StageError
from essence.evaluation.benchmarks import Problem, read_problems
from essence.evaluation.golds import check_golds, golds_of
from essence.evaluation.graders import GRADERS, PACKAGE, Verdict
from essence.evaluation.graders_apart import APART, grader_lock_sha256, grader_version
from essence.evaluation.grading_pool import Item, grade_by_each
from essence.evaluation.sample_lines import SampleLine, VerdictLine, append_lines, read_lines, recover_lines
from essence.evaluation.scores import Summary, summary
from essence.evaluation.statistics import Estimate
from essence.files import sha256_file
from essence.progress import StageContext
from essence.record.evaluation_records import GradeData, GradeExecuted, GradeResults
from essence.record.outcomes import GradeOutcome
from essence.settings import GradeSettings

SAMPLES_FILE = "samples.jsonl"
VERDICTS_FILE = "verdicts.jsonl"
VERDICTS_A_WRITE = 64


def run(settings: GradeSettings, context: StageContext) -> GradeOutcome:
    """Grade; inputs `samples` (output of a generate stage) and `problems`.

    Raises InputError for samples that are not the same number of each problem or for golds that cannot be read, before
    the first verdict; StageError when the grader or the number of samples is not the declared one or the verdicts are
    not those of the samples; and Stopped between two writes.
    """
    _check_grader(settings)
    samples_file = context.inputs["samples"] / SAMPLES_FILE
    samples = read_lines(samples_file, SampleLine)
    problems = read_problems(context.inputs["problems"] / "problems", settings.benchmark)
    samples_per_problem = _samples_per_problem(samples, problems)
    if samples_per_problem != settings.samples:
        raise StageError(
            f"{samples_file} holds {samples_per_problem} samples of each problem of {settings.benchmark.name}, "
            f"declared: {settings.samples}",
            "run the generate stage again.",
        )
    golds = golds_of(settings.benchmark.name, problems)
    check_golds(golds, {settings.grader: settings.timeout_s}, context.resources.threads)
    # Those of every environment: what is counted must not depend on what else is installed beside one of them.
    others = tuple(grader for grader in GRADERS if grader != settings.grader and grader not in APART)
    of_problem = dict(zip((problem.id for problem in problems), golds, strict=True))
    _grade(samples, of_problem, (settings.grader, *others), settings.timeout_s, context)
    verdicts = read_lines(context.partial / VERDICTS_FILE, VerdictLine)
    if [(v.problem, v.sample) for v in verdicts] != [(s.problem, s.sample) for s in samples]:
        raise StageError(f"{VERDICTS_FILE} is not of the samples in {samples_file}: delete the stage's folder.")
    return GradeOutcome(
        results=_results(summary(settings, [problem.id for problem in problems], samples, verdicts)),
        data=GradeData(samples_sha256=sha256_file(samples_file)),
        executed=GradeExecuted(
            grader=settings.grader,
            grader_version=f"{PACKAGE} {grader_version(settings.grader)}",
            grader_lock_sha256=grader_lock_sha256(settings.grader),
            other_graders={grader: f"{PACKAGE} {grader_version(grader)}" for grader in others},
            samples_per_problem=samples_per_problem,
        ),
    )


def _results(found: Summary) -> GradeResults:
    votes = {"pass_at_k": found["pass_at_k"], "majority_at_k": found["majority_at_k"]}
    plain: dict[str, object] = {name: {k: asdict(one) for k, one in of.items()} for name, of in votes.items()}
    plain |= {name: asdict(value) for name, value in found.items() if isinstance(value, Estimate)}
    return GradeResults.model_validate({**found, **plain})


def _check_grader(settings: GradeSettings) -> None:
    """The grader is of the declared version, since other versions judge some completions otherwise."""
    installed = grader_version(settings.grader)
    if settings.grader not in APART and installed != settings.math_verify:
        raise StageError(
            f"{PACKAGE} {installed} is installed, declared: {settings.math_verify} ([grading] math_verify)",
            "run `make setup`, or declare the installed one.",
        )


def _samples_per_problem(samples: Sequence[SampleLine], problems: Sequence[Problem]) -> int:
    """How many samples every problem has; InputError unless each has the same, one or more."""
    marked = {(sample.problem, sample.sample) for sample in samples}
    if len(marked) != len(samples):
        raise InputError(f"{SAMPLES_FILE} has {len(samples) - len(marked)} samples twice, wanted: each once.")
    counts = Counter(problem for problem, _ in marked)
    unknown = counts.keys() - {problem.id for problem in problems}
    if unknown:
        raise InputError(f"{SAMPLES_FILE} has samples of a problem that the benchmark lacks: {min(unknown)!r}.")
    found = {counts[problem.id] for problem in problems}
    if len(found) != 1 or 0 in found:
        raise InputError(
            f"{SAMPLES_FILE} has {min(found)} to {max(found)} samples per problem, wanted: one number, at least 1."
        )
    return found.pop()


def _grade(
    samples: Sequence[SampleLine],
    golds: dict[str, Item],
    graders: tuple[str, ...],
    timeout_s: float,
    context: StageContext,
) -> None:
    """Append the verdicts that are missing to verdicts.jsonl, in the order of the samples; the first grader's count."""
    path = context.partial / VERDICTS_FILE
    done = len(recover_lines(path, VerdictLine))
    rest = samples[done:]
    items = [golds[sample.problem]._replace(completion=sample.completion) for sample in rest]
    context.progress.update("grade", done, len(samples), "samples")
    records: list[VerdictLine] = []
    with closing(grade_by_each(items, graders, timeout_s, context.resources.threads)) as graded:
        for sample, item, verdicts in zip(rest, items, graded, strict=True):
            records.append(_record(sample, item.gold, dict(zip(graders, verdicts, strict=True))))
            done += 1
            context.progress.update("grade", done, len(samples), "samples")
            if len(records) == VERDICTS_A_WRITE or done == len(samples):
                append_lines(path, records)
                records.clear()
                context.stop.check()


def _record(sample: SampleLine, gold: str, verdicts: dict[str, Verdict]) -> VerdictLine:
    """The first verdict, and of the other graders whether they call the completion right."""
    verdict, *_ = verdicts.values()
    return VerdictLine(
        problem=sample.problem,
        sample=sample.sample,
        gold=gold,
        extracted=verdict.extracted,
        answer=verdict.answer,
        correct=verdict.correct,
        status=verdict.status,
        boxed=verdict.boxed,
        others={grader: other.correct for grader, other in list(verdicts.items())[1:]},
    )
