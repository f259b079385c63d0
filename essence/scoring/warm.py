"""Imported once by the server that grading processes are forked from: what the graders learn by use, each inherits.

The grammar of LaTeX is read into tables as expressions need them: the first few cost far more than the later ones.
"""

from essence.scoring.graders import GRADERS

EXAMPLES = (
    ("42", r"so $x = 6 \cdot 7$ and the final answer is $\boxed{42}$"),
    (r"\frac{3}{2}", r"\boxed{\frac{3}{2}}"),
    (r"2\sqrt{3}", r"\boxed{2 \sqrt{3} + x^2 - 1}"),
    ("(1, 2)", r"$\left(1, 2\right)$"),
    ("0.5", "the answer is 1/2 = 0.5"),
)

for _gold, _completion in EXAMPLES:
    for _grade in GRADERS.values():
        _grade(_gold, _completion)
