"""Imported once by the server that grading processes are forked from: what the graders learn by use, each inherits."""

from essence.evaluation.cpu_time import limit_expressions_by_cpu_time
from essence.evaluation.graders import GRADERS
from essence.evaluation.graders_apart import APART
from essence.evaluation.grading_examples import use

limit_expressions_by_cpu_time()
use(grader for grader in GRADERS if grader not in APART)
