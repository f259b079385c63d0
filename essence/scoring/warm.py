"""Imported once by the server that grading processes are forked from: what the graders learn by use, each inherits."""

from essence.scoring.apart import APART
from essence.scoring.examples import use
from essence.scoring.graders import GRADERS

use(grader for grader in GRADERS if grader not in APART)
