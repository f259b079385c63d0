"""What one training step does besides its products, counted at real sizes without any of their memory.

`python bench/step_counts.py [--student qwen3-4b-base] [--teacher qwen3-8b] [--tokens 2500]`

One row in one pass, on one device that holds all: with float32 weights under autocast, as trainings were, and with
bfloat16 weights over float32 masters, with and without recomputation; and the last two with compiled decoder layers,
of which the compiler's plan is counted (`tests/support/compiled_counts.py`). `tests/support/step_counts.py` says what a
launch and a byte are, tests/distill/test_step_counts.py compares the count with PyTorch's profiler. Beside the peak of
a pass stands what the memory rule has for it (`essence/sizes/memory.py`). A count is the same on every machine; it is
no time. Writes bench/results/step_counts.json.
"""

import argparse
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from measurement import at_start, refuse_without_peers  # noqa: E402

from essence.files import write_json  # noqa: E402
from essence.plan.experiment import load  # noqa: E402
from essence.sizes.architecture import Architecture  # noqa: E402
from support.compiled_counts import LayerCounts  # noqa: E402
from support.counted_step import CompiledStep, CountedStep, compiled_step, counted_step, rule_bytes  # noqa: E402
from support.step_counts import StepCounts  # noqa: E402

FORMS = {"autocast, recomputed": (False, True), "masters, recomputed": (True, True), "masters, kept": (True, False)}
MOST_OPERATIONS = 12


def described(step: CountedStep) -> dict[str, object]:
    return {
        "launches": step.in_pass.launches,
        "bytes_beside_products": step.in_pass.bytes_beside_products,
        "update_launches": step.update.launches,
        "update_bytes": step.update.bytes_beside_products,
        "peak_bytes": step.peak_bytes,
        "later_peak_bytes": step.later_peak_bytes,
        "most_launches": dict(step.in_pass.by_operation.most_common(MOST_OPERATIONS)),
        "most_bytes": dict(step.in_pass.bytes_by_operation.most_common(MOST_OPERATIONS)),
    }


def compiled(step: CompiledStep, recomputed: bool) -> dict[str, object]:
    return {
        "launches": step.launches(recomputed),
        "bytes_beside_products": step.bytes_beside_products(recomputed),
        "later_peak_bytes": step.peak_bytes(recomputed),
    }


def parts_of(step: CompiledStep) -> dict[str, object]:
    """What compiled steps are counted from."""
    return {
        "around the layers": of_counts(step.around),
        "sums of gradients": of_counts(step.summed),
        "student_layer": {**of_layer(step.student), "kept_bytes": step.student.kept_bytes},
        "teacher_layer": of_layer(step.teacher),
    }


def of_counts(counts: StepCounts) -> dict[str, object]:
    return {"launches": counts.launches, "bytes_beside_products": counts.bytes_beside_products}


def of_layer(counts: LayerCounts) -> dict[str, object]:
    passes = {"forward": counts.forward, "backward": counts.backward}
    return {
        name: {
            "launches": dict(one.by_operation.most_common()),
            "bytes_beside_products": one.bytes_beside_products,
        }
        for name, one in passes.items()
        if one
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--student", default="qwen3-4b-base", help="a model of experiments/pins.toml")
    parser.add_argument("--teacher", default="qwen3-8b", help="the same")
    parser.add_argument("--tokens", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=PROJECT / "bench" / "results" / "step_counts.json")
    arguments = parser.parse_args()
    refuse_without_peers("step_counts", arguments.out)
    start = at_start("step_counts", 1)
    models = load("bespoke").catalogue.models
    student, teacher = (models[name].architecture for name in (arguments.student, arguments.teacher))
    if student is None or teacher is None:
        raise SystemExit("experiments/pins.toml has no architecture of this model")
    pair = Architecture(**student.model_dump()), Architecture(**teacher.model_dump())
    # The memory rule is of what trains today: masters.
    rule = {again: rule_bytes(*pair, arguments.tokens, again) for again in (True, False)}
    counted = {
        form: described(counted_step(*pair, arguments.tokens, masters, recomputed))
        | ({"rule_bytes": rule[recomputed]} if masters else {})
        for form, (masters, recomputed) in FORMS.items()
    }
    step = compiled_step(*pair, arguments.tokens)
    counted |= {
        f"compiled, {form}": compiled(step, again) | {"rule_bytes": rule[again]}
        for form, again in (("recomputed", True), ("kept", False))
    }
    work = {name: getattr(arguments, name) for name in ("student", "teacher", "tokens")}
    write_json(arguments.out, {**start, "work": work, "counted": counted, "compiled_parts": parts_of(step)})


if __name__ == "__main__":
    main()
