"""The formulas against known parameter counts, a hand count, and PyTorch's own counter."""

import pytest

from essence.errors import InputError
from essence.files import GIB
from essence.sizes.architecture import (
    Architecture,
    distillation_flops,
    forward_flops,
    layer_flops,
    static_bytes,
    training_flops,
)
from support.paper_sizes import QWEN3


@pytest.mark.parametrize(("name", "billions"), [("0.6b", 0.596), ("1.7b", 1.721), ("4b", 4.022), ("8b", 8.191)])
def test_parameters_of_published_models(name: str, billions: float) -> None:
    assert QWEN3[name].parameters / 1e9 == pytest.approx(billions, abs=5e-4)


def test_parameters_of_the_largest() -> None:
    assert QWEN3["32b"].parameters / 1e9 == pytest.approx(32.762, abs=5e-4)


def test_parameters_and_config_agree_with_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for kind, extra in (("qwen3", {"head_dim": 24}), ("qwen2", {}), ("llama", {})):
        for tied in (True, False):
            config = transformers.AutoConfig.for_model(
                kind,
                vocab_size=97,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=48,
                tie_word_embeddings=tied,
                **extra,
            )
            model = transformers.AutoModelForCausalLM.from_config(config)
            assert Architecture.from_config(config.to_dict()).parameters == model.num_parameters()


def test_missing_size_is_named() -> None:
    with pytest.raises(InputError, match="hidden_size"):
        Architecture.from_config({"num_hidden_layers": 2})


def test_halving_tokens_halves_flops_as_the_paper_says() -> None:
    for student, teacher, ratio in (("4b", "8b", 0.471), ("8b", "32b", 0.483), ("1.7b", "8b", 0.475)):
        half, full = (
            distillation_flops(QWEN3[student], QWEN3[teacher], [tokens], activation_checkpointing=True)
            for tokens in (2048, 4096)
        )
        assert half / full == pytest.approx(ratio, abs=1e-3)


def test_flops_equal_the_count_of_pytorch() -> None:
    """PyTorch counts the full attention square, the formula its causal half."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        attn_implementation="eager",
    )
    model, sizes = transformers.Qwen3ForCausalLM(config), Architecture.from_config(config.to_dict())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 40, dtype=torch.long))
    square = 2 * 40**2 * sizes.attention_width * sizes.layers
    assert counter.get_total_flops() == forward_flops(sizes, 40) + square


def test_checkpointing_costs_one_more_forward_of_the_layers() -> None:
    model = QWEN3["4b"]
    more = training_flops(model, 100, activation_checkpointing=True)
    assert more - training_flops(model, 100, activation_checkpointing=False) == layer_flops(model, 100)


def test_static_memory() -> None:
    student, teacher = QWEN3["4b"], QWEN3["8b"]
    assert static_bytes(student, teacher, "bfloat16") / GIB == pytest.approx(82.7, abs=0.05)
    assert static_bytes(student, teacher, "float32") == 16 * student.parameters + 4 * teacher.parameters
