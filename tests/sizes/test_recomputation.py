"""Activations are kept, kept in shorter passes, or recomputed: by memory and the model of time."""

from dataclasses import replace
from typing import Any

import pytest

from essence.files import GIB
from essence.plan.cells import resources_of, train_settings
from essence.plan.experiment import load
from essence.settings import Resources, TrainSettings
from essence.sizes.memory import DeviceLoad, device_bytes, estimate_memory, load_of
from essence.sizes.recomputation import (
    LEAST_PASS_TOKENS,
    Activations,
    StepReading,
    bytes_to_keep,
    choose_activations,
    choose_for_full_steps,
    longest_kept_pass,
)
from support.paper_sizes import QWEN3

LONGEST = 4095


def headline(**changes: Any) -> tuple[TrainSettings, Resources, DeviceLoad]:
    """8B to 4B on four GPUs at LSP 1.0, two rows of 4,095 tokens a step and GPU."""
    loaded = load("bespoke")
    cell = loaded.cells()[-1]
    settings = train_settings(cell, loaded.experiment)
    settings = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"batch_rows": 8})})
    resources = resources_of("train", loaded.experiment, cell).model_copy(update=changes)
    return settings, resources, load_of(settings, QWEN3["4b"], QWEN3["8b"], resources.loss)


def chosen(gib: float, **changes: Any) -> tuple[DeviceLoad, Activations]:
    settings, resources, load_ = headline(**changes)
    return choose_for_full_steps(settings, resources, load_, LONGEST, int(gib * GIB))


def test_they_are_kept_where_that_fits_else_in_shorter_passes_else_recomputed() -> None:
    held, found = chosen(100.0)
    assert (found.recomputed, found.micro_batch_tokens, held.positions) == (False, 8192, 8192)
    spared = estimate_memory(held).dynamic / 10
    assert found.kept_bytes == pytest.approx(device_bytes(held) + spared, abs=1) and not found.shortened
    assert chosen(found.kept_bytes / GIB - 0.1)[0].positions < 8192, "with less to spare, passes are shorter"
    held, found = chosen(75.0)
    assert not found.recomputed and found.shortened and 4096 <= held.positions <= found.micro_batch_tokens < 8192
    assert device_bytes(held) <= 75 * GIB < found.kept_bytes and held.labels == LONGEST
    assert "less time than computing them again" in found.sentence
    held, found = chosen(60.0)
    assert found.recomputed and (found.micro_batch_tokens, held.positions) == (8192, 8192)
    assert found.recomputed_bytes == device_bytes(held) < 60 * GIB and found.because == "they do not fit"
    assert f"needs {found.kept_bytes / GIB:.1f} GiB to keep them with some to spare" in found.sentence
    assert chosen(1.0)[1].recomputed, "where nothing fits, the preflight says so"


@pytest.mark.parametrize(("asked", "recomputed"), [("on", True), ("off", False)])
def test_what_is_asked_for_is_done_whatever_the_memory(asked: str, recomputed: bool) -> None:
    for gib in (1.0, 200.0):
        held, found = chosen(gib, activation_checkpointing=asked)
        assert found.recomputed == held.activation_checkpointing == recomputed
        assert found.micro_batch_tokens == 8192 and f"activation_checkpointing = '{asked}'" in found.sentence


def test_the_choice_is_handed_on_as_a_resource() -> None:
    _, resources, _ = headline()
    _, shorter = chosen(75.0)
    told = shorter.resources(resources)
    assert told.activation_checkpointing == "off" and told.micro_batch_tokens == shorter.micro_batch_tokens
    again = chosen(75.0, activation_checkpointing="off", micro_batch_tokens=told.micro_batch_tokens)[1]
    assert again.kept_bytes <= 75 * GIB and chosen(60.0)[1].resources(resources).activation_checkpointing == "on"


def test_more_passes_are_taken_only_where_they_take_less_time_than_computing_again() -> None:
    """Ten passes for one: each brings the gradients of the 4B student together once more."""
    settings, resources, load_ = headline()
    load_ = replace(load_, positions=8192, labels=8192)

    def found(often: float) -> Activations:
        reading = StepReading(2.0, 4000.0, LONGEST, lambda tokens: 1.0 if tokens == 8192 else often)
        return choose_activations(settings, resources, load_, reading, 75 * GIB)

    few, many = found(2.0), found(10.0)
    assert not few.recomputed and many.recomputed and many.micro_batch_tokens == 8192
    assert "take more time" in many.sentence and not many.shortened


def test_a_pass_gets_no_shorter_than_the_longest_row_and_a_least_length() -> None:
    *_, load_ = headline()
    load_ = replace(load_, positions=8192, labels=8192)

    def needed(tokens: int) -> int:
        return bytes_to_keep(replace(load_, positions=tokens, labels=tokens))

    assert longest_kept_pass(load_, needed(5120), 4095, 16) == 5120
    assert longest_kept_pass(load_, needed(5120) - 1, 4095, 16) == 5104
    assert longest_kept_pass(load_, needed(4096), 4095, 16) == 4096
    assert longest_kept_pass(load_, needed(4096), 4097, 16) is None
    assert longest_kept_pass(load_, needed(LEAST_PASS_TOKENS), 100, 16) == LEAST_PASS_TOKENS
    assert longest_kept_pass(load_, needed(LEAST_PASS_TOKENS) - 1, 100, 16) is None
    assert longest_kept_pass(load_, needed(8192), 100, 16) == 8176, "shorter than what did not fit"
