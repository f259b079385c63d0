"""Heads and loss, forward and backward: the kit's forms against the released one, peers, and the four products alone.

    OMP_WAIT_POLICY=passive python bench/loss.py [--dtype float32] [--tokens 2048] [--rounds 5]
    python bench/loss.py --device cuda --tokens 4096 --hidden 2560 --teacher-hidden 4096

Every form is given the same hidden states and heads and makes the loss, d states and d head; a round runs each once, in
one process, and ratios are of medians over rounds. *released*: full logits and `log(softmax())` as the published
formulas have it. *dense*: the same with log-softmax in the logits' dtype, as generic trainers do. *liger*: Liger's
chunked JSD at beta 0 (CE and forward KL). *products*: the four products with the vocabulary and nothing else.

`CE alone` is plain fine-tuning (`kd_weight = 0`), with no teacher: the kit's forms beside PyTorch's
`linear_cross_entropy`, whole (its default), in chunks (`LinearCrossEntropyOptions()`) and in chunks of its policy
`compact`, and beside the three products that it needs.

Threads that wait must not spin (OMP_WAIT_POLICY), or the CPU time of a busy machine counts their waiting. The error of
d head is against float64 of the same objective, in a tenth of the vocabulary. Live bytes are counted on fake tensors,
where a form allows it. Writes bench/results/loss.json, which needs all peers: `locks/install.sh cpu dev vllm peers`.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measurement import Start, at_start, installed, refuse_without_peers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import LinearCrossEntropyOptions, functional

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from essence.distill.module import objective_from_states  # noqa: E402
from essence.settings import LossResources  # noqa: E402
from support.live_bytes import LiveBytes  # noqa: E402
from support.some_resources import some_objective  # noqa: E402

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
GIB = 1 << 30
Form = Callable[["Work"], Tensor | None]
Row = dict[str, float]
PRODUCTS, RELEASED, PRODUCTS_OF_CE = "products", "released", "CE alone: products"
ASK_FOR_VALUES = ("compiled", "liger", "compact", "chunks")
"""Words in the names of forms that do not run under fake tensors."""


class Work:
    """Inputs of one measurement."""

    def __init__(self, tokens: int, arguments: argparse.Namespace, device: str) -> None:
        dtype = DTYPES[arguments.dtype]
        torch.manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * scale).to(dtype)

        vocabulary, hidden, taught = arguments.vocabulary, arguments.hidden, arguments.teacher_hidden
        self.states, self.head = random(tokens, hidden), random(vocabulary, hidden, scale=1.5 / hidden**0.5)
        self.teacher_states = random(tokens, taught)
        self.teacher_head = random(vocabulary, taught, scale=1.5 / taught**0.5)
        self.labels = (torch.rand(tokens, device=device) ** 4 * vocabulary).long()  # few labels are frequent
        self.weights = torch.full((tokens,), 1.0 / tokens, device=device)

    def fresh(self) -> None:
        self.states, self.head = (x.detach().requires_grad_() for x in (self.states, self.head))


def released(work: Work) -> Tensor:
    logits, taught = work.states @ work.head.T, (work.teacher_states @ work.teacher_head.T).float()
    ce = functional.cross_entropy(logits.float(), work.labels)
    likely = torch.log(torch.softmax(logits.float(), dim=-1))
    return 0.5 * ce + 0.5 * -(torch.softmax(taught, dim=-1) * likely).sum(dim=-1).mean()


def dense(work: Work) -> Tensor:
    logits, taught = work.states @ work.head.T, work.teacher_states @ work.teacher_head.T
    likely, p = functional.log_softmax(logits, dim=-1), functional.log_softmax(taught, dim=-1)
    divergence = functional.kl_div(likely, p, log_target=True, reduction="none").sum(dim=-1).mean()
    return 0.5 * functional.cross_entropy(logits.float(), work.labels) + 0.5 * divergence


def products(work: Work) -> None:
    with torch.no_grad():
        logits = work.states @ work.head.T
        work.teacher_states @ work.teacher_head.T
        logits @ work.head
        logits.T @ work.states


def liger(chunk_rows: int, compiled: bool) -> Form:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.5, 0.5, beta=0.0, chunk_size=chunk_rows, compiled=compiled)

    def run(work: Work) -> Tensor:
        found: Tensor = loss(work.states, work.head, work.teacher_states, work.teacher_head, work.labels)
        return found

    return run


def products_of_ce(work: Work) -> None:
    with torch.no_grad():
        logits = work.states @ work.head.T
        logits @ work.head
        logits.T @ work.states


def linear_cross_entropy(options: LinearCrossEntropyOptions | None) -> Form:
    def run(work: Work) -> Tensor:
        return functional.linear_cross_entropy(work.states, work.head, work.labels, options=options)

    return run


def kit(compiled: bool, kd_weight: float = 0.5) -> Form:
    resources = LossResources(form="chunked", chunk_rows=512, gradient_rows=0, compiled=compiled, fallback=False)
    objective = some_objective(kd_weight=kd_weight)

    def run(work: Work) -> Tensor:
        teacher = (work.teacher_states, work.teacher_head) if kd_weight else (None, None)
        arguments = (*teacher, work.labels, work.weights, objective, resources)
        return objective_from_states(work.states, work.head, *arguments).loss

    return run


def forms(compiled: bool) -> dict[str, Form]:
    """Name -> what is measured; a peer that is not installed is left out, in a file outside bench/results alone."""
    found: dict[str, Form] = {PRODUCTS: products, RELEASED: released, "dense": dense, "kit": kit(compiled=False)}
    if installed("liger-kernel"):
        found |= {"liger": liger(1024, False), "liger, chunk 256": liger(256, False)}
        if compiled:
            found["liger, compiled"] = liger(1024, True)
    if compiled:
        found["kit, compiled"] = kit(compiled=True)
    return found | forms_of_ce(compiled)


def forms_of_ce(compiled: bool) -> dict[str, Form]:
    """The same at `kd_weight = 0`."""
    compact = LinearCrossEntropyOptions(acc_policy="compact")
    found: dict[str, Form] = {
        PRODUCTS_OF_CE: products_of_ce,
        "CE alone: torch": linear_cross_entropy(None),
        "CE alone: torch, chunks": linear_cross_entropy(LinearCrossEntropyOptions()),
        "CE alone: torch, compact": linear_cross_entropy(compact),
        "CE alone: kit": kit(compiled=False, kd_weight=0.0),
    }
    return {**found, "CE alone: kit, compiled": kit(compiled=True, kd_weight=0.0)} if compiled else found


def main() -> None:
    arguments = read_arguments()
    refuse_without_peers("loss", arguments.out)
    start = at_start("loss", arguments.threads)
    torch.set_num_threads(arguments.threads)
    measured = forms(not arguments.eager)
    rounds: dict[str, list[Row]] = {name: [] for name in measured}
    work = Work(arguments.tokens, arguments, arguments.device)
    for name, form in measured.items():
        clock(form, work, arguments.device)  # compilers and buffers
        print(f"warm: {name}", flush=True)
    for number in range(arguments.rounds):
        for name, form in measured.items():
            rounds[name].append(clock(form, work, arguments.device))
            spent = ", ".join(f"{key} {value:.2f}" for key, value in rounds[name][-1].items())
            print(f"round {number + 1} {name}: {spent}", flush=True)
    rows = summary(rounds, measured, arguments)
    record = {**describe(arguments, start), "summary": rows, "rounds": rounds}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:26s}", row)


def clock(form: Form, work: Work, device: str) -> Row:
    """CPU and wall seconds of one forward and backward pass, or milliseconds between CUDA events."""
    work.fresh()
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start.record()  # type: ignore[no-untyped-call]
        run(form, work)
        end.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        return {"gpu_ms": start.elapsed_time(end), "peak_gib": (torch.cuda.max_memory_allocated() - before) / GIB}
    cpu, wall = time.process_time(), time.perf_counter()
    run(form, work)
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def run(form: Form, work: Work) -> None:
    loss = form(work)
    if loss is not None:
        loss.backward()


def summary(rounds: dict[str, list[Row]], measured: dict[str, Form], arguments: argparse.Namespace) -> dict[str, Row]:
    """A row a form: medians, distance to the products that it needs, bytes and error."""
    key = "gpu_ms" if arguments.device == "cuda" else "cpu_s"
    medians = {name: statistics.median(one[key] for one in times) for name, times in rounds.items()}
    errors = head_gradient_errors(measured, arguments)
    rows: dict[str, Row] = {}
    live: dict[str, int] = {}
    for name, form in measured.items():
        needed = PRODUCTS_OF_CE if of_ce_alone(name) else PRODUCTS
        rows[name] = {key: round(medians[name], 3), "it_over_products": round(medians[name] / medians[needed], 2)}
        if name not in (PRODUCTS, PRODUCTS_OF_CE) and not any(word in name for word in ASK_FOR_VALUES):
            live[name] = live_bytes(form, arguments)
            rows[name]["live_gib"] = round(live[name] / GIB, 3)
        if name in errors:
            rows[name]["head_gradient_error"] = errors[name]
    for name, row in rows.items():
        if not of_ce_alone(name):
            row["released_over_it"] = round(medians[RELEASED] / medians[name], 2)
            if name in live:
                row["released_bytes_over_it"] = round(live[RELEASED] / live[name], 2)
    return rows


def of_ce_alone(name: str) -> bool:
    return name.startswith("CE alone")


def live_bytes(form: Form, arguments: argparse.Namespace) -> int:
    """Peak of live tensor bytes above the inputs."""
    with FakeTensorMode():
        work = Work(arguments.tokens, arguments, "cpu")
        work.fresh()
        with LiveBytes() as memory:
            run(form, work)
    return memory.peak


def head_gradient_errors(measured: dict[str, Form], arguments: argparse.Namespace) -> dict[str, float]:
    """Relative error of d head against float64 on the same inputs, in a vocabulary of a tenth."""
    smaller = argparse.Namespace(**{**vars(arguments), "vocabulary": arguments.vocabulary // 10})
    work = Work(arguments.tokens, smaller, arguments.device)
    exact = {alone: exact_head_gradient(form, smaller) for alone, form in EXACT.items()}
    errors = {}
    for name, form in measured.items():
        if name in (PRODUCTS, PRODUCTS_OF_CE):
            continue
        work.fresh()
        run(form, work)
        assert work.head.grad is not None
        wanted = exact[of_ce_alone(name)]
        errors[name] = float(f"{((work.head.grad.double() - wanted).norm() / wanted.norm()).item():.3g}")
    return errors


def exact_head_gradient(form: Form, arguments: argparse.Namespace) -> Tensor:
    work = Work(arguments.tokens, arguments, arguments.device)
    for name in ("states", "head", "teacher_states", "teacher_head"):
        setattr(work, name, getattr(work, name).double())
    work.fresh()
    run(form, work)
    assert work.head.grad is not None
    return work.head.grad


def ce_float64(work: Work) -> Tensor:
    return functional.cross_entropy(work.states @ work.head.T, work.labels)


def dense_float64(work: Work) -> Tensor:
    logits, taught = work.states @ work.head.T, work.teacher_states @ work.teacher_head.T
    kd = -(torch.softmax(taught, dim=-1) * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
    return 0.5 * functional.cross_entropy(logits, work.labels) + 0.5 * kd


EXACT: dict[bool, Form] = {False: dense_float64, True: ce_float64}
"""Of the whole objective, and of cross-entropy alone."""


def describe(arguments: argparse.Namespace, start: Start) -> dict[str, object]:
    """The work and the machine."""
    names = ("device", "dtype", "tokens", "hidden", "teacher_hidden", "vocabulary", "threads", "rounds")
    return {
        **start,
        "work": {name: getattr(arguments, name) for name in names},
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--teacher-hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="nothing that is compiled")
    parser.add_argument("--out", type=Path, default=PROJECT / "bench" / "results" / "loss.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
