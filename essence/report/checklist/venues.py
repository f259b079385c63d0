"""The questions of three venues in the kit's own words, under the venue's numbers, and which facts answer them.

Numbers are those of the ACL Rolling Review's responsible NLP checklist, of the NeurIPS paper checklist, and of the
unified artifact appendix that many evaluation committees use. A venue changes its form: check the year's own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question."""

    number: str
    asks: str
    facts: tuple[str, ...] = ()
    """Names in `known_facts.FACTS`; empty where no record can answer."""
    open: str = ""
    """What of the question no record can tell."""


@dataclass(frozen=True)
class Venue:
    """The form of one kind of venue."""

    title: str
    questions: tuple[Question, ...]


ACL = Venue(
    "Responsible NLP checklist (ACL Rolling Review)",
    (
        Question("A1", "Limitations of the work", open="which limits the authors see"),
        Question("A2", "Risks of the work", open="which risks the authors see"),
        Question("B1", "Creators of the artefacts that were used", ("artefacts",), "which papers to cite for them"),
        Question("B2", "Licences and terms of the artefacts", ("licences",), "terms beyond these files"),
        Question("B3", "Use as intended, and intended use of what was made", open="what the creators intended"),
        Question("B4", "Personal or offensive content in the data", open="whether the data hold such content"),
        Question("B5", "Documentation of the artefacts", ("artefacts", "methods"), "languages, domains and groups"),
        Question("B6", "Sizes and splits of the data", ("data", "contamination")),
        Question(
            "C1", "Size of the models, compute budget, infrastructure", ("parameters", "compute", "hardware"),
            "compute of runs outside of this run directory",
        ),
        Question(
            "C2", "Setup, hyper-parameters and how they were found",
            ("methods", "training_settings", "sampling_settings"), "how the hyper-parameters were searched for",
        ),
        Question(
            "C3", "Statistics of the results: error bars, single run or mean",
            ("trainings", "intervals", "accuracies"),
        ),
        Question("C4", "Packages with their versions and settings", ("software", "sampling_settings")),
        Question("D1", "Instructions to human participants", open="whether people took part"),
        Question("D2", "Recruitment and pay of participants", open="whether people took part"),
        Question("D3", "Consent of those whose data were used", open="how consent was obtained"),
        Question("D4", "Approval by an ethics board", open="whether a board was asked"),
        Question("D5", "Who the annotators are", open="whether people annotated"),
        Question("E1", "Use of AI assistants", open="whether assistants helped to write, code or search"),
    ),
)  # fmt: skip

NEURIPS = Venue(
    "NeurIPS paper checklist",
    (
        Question("1", "Claims: do they match what was found?", ("verdicts",), "what the paper's text claims"),
        Question("2", "Limitations", open="which limits the authors see"),
        Question("3", "Theory: assumptions and proofs", open="whether the paper has theorems"),
        Question(
            "4", "What is needed to reproduce the main results",
            ("methods", "artefacts", "trainings", "code", "commands"),
        ),
        Question(
            "5", "Access to data and code, with instructions", ("artefacts", "code", "commands"),
            "where code and outputs are published",
        ),
        Question(
            "6", "Setting: splits, hyper-parameters, optimiser and how they were chosen",
            ("data", "contamination", "training_settings", "sampling_settings"),
            "how the hyper-parameters were chosen",
        ),
        Question("7", "Significance: error bars and what they are over", ("trainings", "intervals", "accuracies")),
        Question(
            "8", "Compute: kind, memory, time of each run and of the whole", ("hardware", "compute", "disk"),
            "compute of runs outside of this run directory",
        ),
        Question("9", "Code of ethics", open="whether the authors have read and kept it"),
        Question("10", "Broader impacts", open="which impacts the authors see"),
        Question("11", "Safeguards for what is released", open="what is released, and how"),
        Question("12", "Licences of existing assets, and their creators", ("artefacts", "licences"), "whom to credit"),
        Question("13", "Documentation of new assets", ("methods", "code"), "which assets are released"),
        Question("14", "Crowdsourcing and human subjects", open="whether people took part"),
        Question("15", "Approval for research with human subjects", open="whether a board was asked"),
        Question("16", "Use of language models as a part of the method", ("methods",), "use beyond what was trained"),
    ),
)  # fmt: skip

ARTEFACT = Venue(
    "Artefact appendix",
    (
        Question("A.1", "Abstract", ("methods", "verdicts")),
        Question("A.2", "Check-list: program and algorithm", ("methods", "code")),
        Question("A.2", "Check-list: models and data sets", ("artefacts", "data")),
        Question("A.2", "Check-list: run-time environment", ("software",)),
        Question("A.2", "Check-list: hardware", ("hardware",)),
        Question("A.2", "Check-list: metrics", ("intervals",)),
        Question("A.2", "Check-list: disk space", ("disk",), "space for caches and images"),
        Question("A.2", "Check-list: time to complete the experiments", ("compute",), "time to prepare the workflow"),
        Question("A.2", "Check-list: licences of code and data", ("licences", "code")),
        Question("A.2", "Check-list: archive", open="whether and where it is archived, and its DOI"),
        Question("A.3.1", "How to access it", ("code",), "where it is published"),
        Question("A.3.2", "Hardware dependencies", ("hardware",), "the least that would do"),
        Question("A.3.3", "Software dependencies", ("software",)),
        Question("A.3.4", "Data sets", ("data", "contamination", "licences")),
        Question("A.3.5", "Models", ("artefacts", "parameters")),
        Question("A.4", "Installation", ("commands",)),
        Question("A.5", "Experiment workflow", ("commands", "trainings")),
        Question("A.6", "Evaluation and expected results", ("accuracies", "verdicts", "intervals")),
        Question("A.7", "Customisation", ("training_settings", "sampling_settings")),
        Question("A.8", "Notes", open="what the authors add"),
    ),
)

VENUES = {"acl": ACL, "neurips": NEURIPS, "ae": ARTEFACT}
