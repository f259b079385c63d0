"""`invoke prove`: what it measures and checks here at small sizes, and that it catches what is wrong."""

import json
import math
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from essence.commands import prove as command
from essence.commands.doctor import doctor
from essence.commands.plan import print_plan
from essence.engines.engine import Launch
from essence.engines.local import LocalEngine
from essence.engines.selected_run import Options
from essence.errors import ExperimentError, MachineError
from essence.plan.newest_proof import newest_proof, proofs
from essence.record.proof_records import CheckRecord
from essence.record.run_directory import RunDirectory
from essence.record.verification import verify
from essence.sizes.speeds import ASSUMED, DecodeWork, cache_bytes, decoding_seconds
from essence.stages.launch import REPORTS, report_failure
from support.paper_sizes import QWEN3
from support.project import PROJECT
from support.proof_record import proof
from support.proof_settings import asked, staged
from support.stage_inputs import context

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
CPU = torch.device("cpu")
CHECKS = ["memory", "disk", "compilers' folder", "loss", "attention", "repeat", "recomputation"]
CHECKS += ["resume", "packing", "bfloat16"]
NO_NUMBERS = """
import math
from torch.nn import functional
functional.silu = lambda states, *_: states * math.nan
"""
TWO_RANKS = 'extends = "tiny"\ntitle = "two ranks"\n[training]\nparallel = "ddp"\nprocesses = 2\n'


def planned(runs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `invoke plan` says of the miniature."""
    print_plan(Options(experiment="tiny", runs=str(runs)), as_json=False, console=Console(width=200))
    return capsys.readouterr().out


def test_a_machine_is_measured_and_right(tmp_path: Path) -> None:
    """Both stages in this process: every check passes, and the model that one leaves is what the other decodes with."""
    from essence.stages import prove_decoding, prove_training

    training, decoding = asked(tmp_path)
    stage = tmp_path / "training"
    found = prove_training.run(training, staged(stage, "prove_training", training)).results
    (stage / "partial").rename(stage / "output")
    assert [check.name for check in found.checks] == CHECKS
    assert all(check.passed for check in found.checks), [check.sentence for check in found.checks]
    kept = [(16, 1, False), (48, 1, False), (16, 2, False)]
    both = [*kept, *((tokens, passes, True) for tokens, passes, _ in kept)]
    assert [(point.tokens, point.passes, point.recomputed) for point in found.steps] == both
    assert all(point.seconds > 0 and point.peak_bytes is None and point.rule_bytes > 0 for point in found.steps)
    for point in found.steps:
        parts = point.parts
        assert parts is not None and parts.host_gap_s is None and parts.communication_s == 0.0
        told = [float(each) for each in (parts.teacher_s, parts.forward_s, parts.backward_s, parts.optimizer_s)]
        assert min(told) > 0.0
    assert found.steps[3].flops > found.steps[0].flops and found.steps[3].rule_bytes < found.steps[0].rule_bytes
    assert found.validation and found.validation.seconds > 0 and found.validation.fitted_s > 0
    assert found.checkpoint_bytes_per_s and found.checkpoint_bytes_per_s > 0
    assert not list((tmp_path / "training" / "scratch").glob("proof*")), "what was written to be timed goes again"
    assert found.steps[1].flops > 3 * found.steps[0].flops > 0 and found.link is None and found.host_bytes_per_s is None
    assert found.main_memory_parameter_s is not None
    rates = (
        found.main_memory_parameter_s,
        found.memory_bytes_per_s,
        found.disk_write_bytes_per_s,
        found.disk_read_bytes_per_s,
        found.save_bytes_per_s,
    )
    assert all(rate > 0 for rate in (*rates, found.launch_s, found.loss_s_per_token, found.products[0].flops_per_s))
    assert (found.devices, found.student_layers) == (0, 2)
    decoded = prove_decoding.run(decoding, staged(tmp_path / "decoding", "prove_decoding", decoding, training=stage))
    assert decoded.results.checks[0].passed and decoded.results.decoder == "transformers"
    assert [(p.sequences, p.context) for p in decoded.results.points] == [(1, 18), (1, 34), (2, 18), (2, 34)]
    assert decoded.results.start_s > 0 and decoded.results.tokens_per_s > 0
    assert decoded.results.warm_start_s and decoded.results.warm_start_s > 0


def test_a_copy_on_two_gpus_takes_as_long_in_the_plan_as_it_was_measured(tmp_path: Path) -> None:
    """The plan divides what a step reads by the GPUs of a copy, and so does the fit."""
    from essence.stages import prove_decoding, prove_start
    from essence.stages.prove_start import width_of_copy

    decoding = asked(tmp_path)[1].model_copy(update={"decoder": "vllm", "dtype": "bfloat16"})
    resources = context(tmp_path / "x").resources.model_copy(update={"gpus": 2, "tensor_parallel": 2})
    loads = [(1, 1024), (32, 1024), (128, 1024), (128, 4096)]
    check, sizes = CheckRecord(name="seeds", passed=True, sentence=""), QWEN3["4b"]
    nothing = {"sequences": 1, "prompt_tokens": 4096, "seconds": prove_start.LEAST_STEP_S}
    found = []
    for width in (width_of_copy(decoding, resources), 1):
        exact = [
            decoding_seconds(ASSUMED, DecodeWork(
                sizes.parameters / width, count, count * cache_bytes(sizes, tokens + decoding.new_tokens // 2) / width
            ))
            for count, tokens in loads
        ]  # fmt: skip
        timed = [
            {"sequences": count, "prompt_tokens": tokens, "seconds": seconds}
            for (count, tokens), seconds in zip(loads, exact, strict=True)
        ]
        told = {"decoder": "vllm", "start_s": 9.0, "key_value_tokens": 1, "seeds": check, "loads": [*timed, nothing]}
        first = prove_start.StartOutcome.model_validate(told)
        results = prove_decoding._results(decoding, sizes, width, first, [check], 3.0)
        assert (results.start_s, results.warm_start_s, results.tokens_per_s) == (9.0, 3.0, 128 / exact[2])
        found.append(results.coefficients)
    assert width_of_copy(decoding, resources.model_copy(update={"gpus": 0})) == 1
    assert width_of_copy(decoding.model_copy(update={"decoder": "transformers"}), resources) == 1
    for fit in found:
        assert fit.weight_s == pytest.approx(ASSUMED.weight_s) and fit.sequence_s == pytest.approx(ASSUMED.sequence_s)
        assert fit.cache_byte_s == pytest.approx(ASSUMED.cache_byte_s)


def test_no_more_sequences_are_timed_than_a_small_card_has_room_for(tmp_path: Path) -> None:
    """Keys and values of 4,096 tokens and 33 more for 60 sequences, of twelve layers on a card of 24 GB."""
    from essence.stages.prove_start import timed_loads

    whole = {"sequences": [1, 32, 128], "contexts": [1024, 4096], "new_tokens": 33}
    decoding = asked(tmp_path)[1].model_copy(update=whole)
    every = [(count, tokens) for count in (1, 32, 128) for tokens in (1024, 4096)]
    assert timed_loads(decoding, None) == timed_loads(decoding, 128 * 4129) == every
    assert timed_loads(decoding, 60 * 4129) == [*every[:-1], (60, 4096)]
    assert timed_loads(decoding, 20 * 4129) == [(1, 1024), (1, 4096), (32, 1024), (20, 4096), (78, 1024)]
    assert timed_loads(decoding, 100) == [(1, 1024), (1, 4096)]


def test_seeds_hold_where_what_was_read_of_a_prompt_is_kept(tmp_path: Path) -> None:
    """A decoder that rounds otherwise where it reads a prompt for the first time keeps its seeds all the same."""
    from essence.evaluation.requests import Completion
    from essence.stages.prove_start import seeds_check

    class Keeping:
        def __init__(self, forgets: bool) -> None:
            self.read, self.forgets, self.calls = False, forgets, 0

        def complete(self, requests: Any, present: Any) -> Any:
            self.calls += 1
            token = self.calls if self.forgets else int(self.read)
            self.read = True
            yield [(request, Completion([token], "length", 0.0)) for request in requests]

    decoding = asked(tmp_path)[1]
    for forgets in (False, True):
        decoder: Any = Keeping(forgets)
        assert seeds_check(decoder, decoding, QWEN3["0.6b"], None).passed is not forgets


def test_a_loss_that_is_not_right_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a percent, or in its gradient alone."""
    from essence.distill import module, proof_checks
    from essence.distill.chunked import ChunkedObjective

    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    right = ChunkedObjective

    class Louder:
        @staticmethod
        def apply(*given: Any) -> Any:
            loss, ce, kd = right.apply(*given)
            return loss * 1.01, ce, kd

    class OtherGradient:
        @staticmethod
        def apply(states: Any, *given: Any) -> Any:
            states.register_hook(lambda gradient: gradient * 0.9)
            return right.apply(states, *given)

    assert proof_checks.loss_finding(training, resources, CPU).passed
    for broken in (Louder, OtherGradient):
        monkeypatch.setattr(module, "ChunkedObjective", broken)
        found = proof_checks.loss_finding(training, resources, CPU)
        assert not found.passed and "differ from float64" in found.sentence and 'form = "plain"' in found.sentence


def test_a_resumed_training_that_is_another_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that forgets the moments: the losses go on, other ones."""
    from essence.distill import backends, proof_trainings
    from essence.stages.prove_killed import train_until_killed

    training, resources, work = asked(tmp_path)[0], context(tmp_path / "x").resources, tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(backends.ReplicatedBackend, "_restore_moments", lambda *_: None)
    findings = proof_trainings.training_findings(training, resources, CPU, work, train_until_killed)
    found = {one.name: one for one in findings}
    assert not found["resume"].passed and "in how weights moved, at most 0" in found["resume"].sentence
    assert found["packing"].passed and found["bfloat16"].passed


def test_a_training_that_diverges_before_it_is_killed_is_a_check_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all do on a machine whose kernels give no numbers: the other checks are still made."""
    from essence.distill import proof_trainings
    from essence.stages import prove_training
    from essence.stages.prove_killed import train_until_killed

    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    monkeypatch.setattr(torch.nn.functional, "silu", lambda states, *_: states * math.nan)
    (tmp_path / "sitecustomize.py").write_text(NO_NUMBERS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PROJECT}")
    findings = proof_trainings.training_findings(training, resources, CPU, tmp_path, train_until_killed)
    assert [one.name for one in findings if not one.passed] == ["resume", "packing", "bfloat16"]
    assert all("one diverged (step 1 of 4: loss nan" in one.sentence for one in findings), findings
    several = training.model_copy(update={"processes": 2, "parallel": "ddp"})
    stage = staged(tmp_path / "stage", "prove_training", several)
    _, (found,) = prove_training._ranks(several, stage, CPU)
    assert not found.passed and "losses [nan, nan, nan, nan]" in found.sentence and "parallel in" in found.sentence


def test_gradients_that_are_too_long_are_caught_at_four_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their losses are within the bound: the optimiser hardly sees how long a gradient is."""
    from essence.stages import prove_training
    from support import scaled_rank_program

    changes = {"processes": 4, "parallel": "ddp", "compute_dtype": "bfloat16"}
    training = asked(tmp_path)[0].model_copy(update=changes)
    stage = staged(tmp_path / "stage", "prove_training", training)
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{PROJECT / 'tests'}")
    monkeypatch.setattr(prove_training, "PROGRAM", scaled_rank_program.PROGRAM)
    _, (found,) = prove_training._ranks(training, stage, CPU)
    assert not found.passed and "e+00 in the gradients' norms, at most 1e-01: set parallel" in found.sentence, found


def test_a_rank_that_fails_is_a_check_that_failed_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from essence.stages import prove_training

    training = asked(tmp_path)[0].model_copy(update={"processes": 2, "parallel": "ddp"})
    stage = staged(tmp_path / "stage", "prove_training", training)
    told = [MachineError("a GPU is gone", "take another machine"), ValueError("nobody thought of this")]
    expected = ["a GPU is gone: take another machine", "nobody thought of this: report it, with the log of this stage"]
    for error, sentence in zip(told, expected, strict=True):

        def fails(*_: object, of: Exception = error) -> dict[int, int]:
            report_failure(of, 1, stage.scratch / REPORTS)
            return {0: 1, 1: 1}

        monkeypatch.setattr(prove_training, "run_here", fails)
        ranks, (found,) = prove_training._ranks(training, stage, CPU)
        assert ranks is None and not found.passed and found.sentence.endswith(sentence), found


def test_too_little_memory_and_a_slow_disk_are_told_with_what_cures_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from essence.distill import preflight, proof_checks

    training, resources = asked(tmp_path)[0], context(tmp_path / "x").resources
    slow = proof_checks.disk_finding(training, resources, 1e3)
    assert not slow.passed and "at 1e-06 GB/s, at most 150 s is right" in slow.sentence and "--runs" in slow.sentence
    assert proof_checks.disk_finding(training, resources, 1e9).passed
    assert proof_checks.memory_finding(training, resources, CPU).passed
    monkeypatch.setattr(preflight, "memory_bytes", lambda _: 1 << 20)
    small = proof_checks.memory_finding(training, resources, CPU)
    assert not small.passed and "GiB that can be used of each device's memory" in small.sentence


FAULTY = """
import sys
from essence.distill import module, preflight
from essence.stages import __main__ as stages, prove_training
right = module.ChunkedObjective
class Broken:
    @staticmethod
    def apply(*given):
        loss, ce, kd = right.apply(*given)
        return loss * 1.01, ce, kd
module.ChunkedObjective = Broken
preflight.memory_bytes = lambda _: 1 << 20
prove_training.write_s = lambda file, size: file.write_bytes(b"x") and 1e6
sys.exit(stages.main())
"""


class FaultyMachine(LocalEngine):
    """The local engine on a machine with a slow disk, a broken kernel and too little memory."""

    def command(self, surroundings: Launch) -> list[str]:
        return [sys.executable, "-c", FAULTY, *surroundings.arguments[2:]]


@pytest.mark.slow
def test_the_command_says_each_fault_in_a_sentence_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "make_engine", lambda *_: FaultyMachine("cpu"))
    code = command.prove(Options(runs=str(tmp_path)), dry_run=False, as_json=True, console=Console(stderr=True))
    told = json.loads(capsys.readouterr().out)
    assert code == 1 and not told["proved"]
    failed = {check["name"]: check["sentence"] for check in told["training"]["checks"] if not check["passed"]}
    # The training that is killed on its way is a process of its own, and has the right kernel.
    assert list(failed) == ["memory", "disk", "loss", "resume"]
    assert "faster disk" in failed["disk"] and "differ from float64" in failed["loss"]
    assert f"and wrong: {failed['memory']} (and 3 more)" in planned(tmp_path, capsys)


@pytest.mark.slow
def test_a_proof_is_one_command_and_plan_and_doctor_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With two ranks, in processes of their own; it takes the place of an earlier one of this machine."""
    file, runs = tmp_path / "two.toml", tmp_path / "runs"
    file.write_text(TWO_RANKS, encoding="utf-8")
    assert "not proved: invoke prove measures this machine" in planned(runs, capsys)
    proof(runs, "prove_training-00000000000000a1", "2026-01-01T00:00:00+00:00", socket.gethostname(), 1e-12)
    assert "proved on 2026-01-01, A device" in planned(runs, capsys)
    words = Options(experiment=str(file), runs=str(runs))
    code = command.prove(words, dry_run=False, as_json=False, console=Console(width=200))
    told = capsys.readouterr().out
    assert code == 0 and "✗" not in told, told
    assert "2 ranks over gloo" in told and "✓ ranks: ddp and one process differ by" in told
    assert "proved on 20" in told and "training steps, 2 and 2 layers" in told and "between ranks" in told
    (found,) = proofs(RunDirectory(runs))
    assert not found.failed and found.training.hardware.host == socket.gethostname() and found.decoding
    results = found.training.results
    together = [point for point in results.steps if point.ranks == 2]
    assert [(point.tokens, point.passes) for point in together] == [
        *((length, 1) for length in (16, 78, 156, 256)), (16, 2)
    ]  # fmt: skip
    assert all(point.parts and (point.parts.communication_s or 0.0) > 0.0 for point in together)
    assert results.link and results.link.exposed_byte_s is not None and results.link.over == []
    assert "a checkpoint is written at" in told and "a validation row of 256 tokens takes" in told
    assert found.speeds != ASSUMED and newest_proof(RunDirectory(runs), 4) is None
    assert found.sentence() in planned(runs, capsys)
    doctor(Options(experiment="tiny", runs=str(runs)), False, True, Console(stderr=True))
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["proof"]["found"] == found.sentence() and checks["proof"]["ok"]
    assert verify(RunDirectory(runs).proofs).findings == []


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    for words, told in (
        (Options(engine="dcker"), "did you mean 'docker'?"),
        (Options(experiment="sft", engine="local"), "kd_weight = 0.0 trains without a teacher"),
    ):
        with pytest.raises(ExperimentError, match=re.escape(told)):
            command.prove(replace(words, runs=str(tmp_path)), False, False, Console())
    assert not list(tmp_path.iterdir())


def test_a_queue_is_shown_the_two_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each asks for three hours at most, the second waits for the first, and one has a GPU for its copy alone."""
    words = Options(engine="slurm", runs=str(tmp_path))
    assert command.prove(words, dry_run=True, as_json=True, console=Console()) == 0
    training, decoding = json.loads(capsys.readouterr().out)
    assert decoding["after"] == [training["id"]] and not list(tmp_path.iterdir())
    assert "--time=03:10:00" in training["text"] and "--time=03:10:00" in decoding["text"]
    assert "--gres=gpu:4" in training["text"] and "--gres=gpu:1" in decoding["text"]
