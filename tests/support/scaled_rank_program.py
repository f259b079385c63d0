"""A rank of a proof whose gradients are N times too long, as a sum where a mean is meant makes them."""

import os
import sys
from typing import Any

from essence.distill.float32_masters import GradientSums
from essence.stages import prove_rank

PROGRAM = "support.scaled_rank_program"


def main() -> int:
    right = GradientSums.sum_over

    def too_long(sums: GradientSums, ranks: Any, dtype: Any) -> None:
        right(sums, ranks, dtype)
        for gradient in sums.sums.values():
            gradient *= ranks.processes

    GradientSums.sum_over = too_long  # type: ignore[method-assign]
    return prove_rank.main()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
