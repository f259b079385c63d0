"""What a run is, and what it is not: the first words of its page, and the last of what is printed of a miniature."""

from essence.report.page import reported
from essence.report.results.records import Results
from essence.report.results.run_facts import builtin_sources


def statement(results: Results) -> list[str]:
    """What this run is, and what it is not."""
    refused = [f"{stage.id} ({stage.problem})" for stage in results.refused]
    warning = [f"Not counted, because their records cannot be believed: {'; '.join(refused)}."] if refused else []
    return warning + list(results.accepted) + what_it_is(results)


def what_it_is(results: Results) -> list[str]:
    """Real models beside the paper's, or a miniature and what it is no evidence of."""
    made = builtin_sources(results)
    if not made:
        return [
            f"This run trains and evaluates the models named below; its numbers stand beside those of the paper "
            f"({reported.CITATION}). The paper publishes no score of a single setting, so scores are compared as "
            "retention, cost ratios and orderings."
        ]
    return [
        f"This is a miniature. It takes the real path, from rows to tokens, training, sampling and grading, with "
        f"models and data that the kit makes itself ({', '.join(made)}). It shows that the machinery works on this "
        "machine and what the method does to a small model.",
        f"It is not evidence for or against the paper, which trains {reported.SETTING}. The paper’s values are shown "
        "as reported, for orientation. The miniature’s problems and learning rate were chosen with its accuracies at "
        "several proportions in view (docs/log.md lists the trials): the shape of its curve is no finding.",
    ]
