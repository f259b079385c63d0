"""Examples by which a grading process learns: the grammar of LaTeX is read into tables as expressions need them.

The first few expressions cost far more than the later ones.
"""

from collections.abc import Iterable

from essence.evaluation.graders import GRADERS

EXAMPLES = (
    ("42", r"so $x = 6 \cdot 7$ and the final answer is $\boxed{42}$"),
    (r"\frac{3}{2}", r"\boxed{\frac{3}{2}}"),
    (r"2\sqrt{3}", r"\boxed{2 \sqrt{3} + x^2 - 1}"),
    ("(1, 2)", r"$\left(1, 2\right)$"),
    ("0.5", "the answer is 1/2 = 0.5"),
)


def use(graders: Iterable[str]) -> None:
    """Let graders judge the examples."""
    for grader in graders:
        for gold, completion in EXAMPLES:
            GRADERS[grader](gold, completion)
