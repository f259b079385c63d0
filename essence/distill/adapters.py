"""LoRA: only small matrices beside the frozen ones are trained, and merged into them at the end.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models"; the library is peft. An adapter of a matrix
W is B A with A of shape (rank, in) and B of shape (out, rank), B = 0 at the start; W + alpha / rank * B A takes the
place of W.
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from essence.errors import InputError, disk_error
from essence.files import flush_to_disk, write_json
from essence.models.folder import read_config
from essence.models.loading import load_tokenizer, without_weights
from essence.models.saving import try_saving
from essence.models.template import reason
from essence.settings import LoraSettings

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def add_adapters(model: nn.Module, settings: LoraSettings, seed: int) -> Any:
    """Freeze a model and put adapters into it, float32 whatever the model's dtype; A is drawn from `seed`.

    Returns:
        peft's wrapper, for `save_adapters` and `merged`; `model` itself is what is trained.

    Raises:
        InputError: the model has no matrices of these names.
    """
    from peft import LoraConfig, get_peft_model  # slow to import

    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a fraction is as good
        target_modules=sorted(settings.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    lacking = sorted(set(settings.targets) - names)
    if lacking:
        raise InputError(f"the student has no matrices {', '.join(lacking)}: take them out of lora.targets")
    return get_peft_model(model, config)


def save_adapters(wrapped: Any, folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapters as peft reads them, or other `tensors` of their names; no path of this machine is kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the base model's config cannot be asked for on the hub
        wrapped.save_pretrained(folder, state_dict=tensors)
    for path in folder.iterdir():
        if path.name not in ADAPTER_FILES:
            path.unlink()  # a card that says nothing
    config = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    write_json(folder / ADAPTER_FILES[0], {**config, "base_model_name_or_path": None})
    for name in ADAPTER_FILES:
        flush_to_disk(folder / name)


def try_adapters(folder: Path, settings: LoraSettings, seed: int, scratch: Path) -> None:
    """Put adapters into a model folder's model without its weights, write and merge them as at the end of a training.

    What is written lies in `scratch` for a moment. InputError when the model has no such matrices, or the adapters or
    the merged model cannot be written; DiskError when nothing can be written there.
    """
    wrapped = add_adapters(without_weights(folder, read_config(folder)), settings, seed)
    name = next(name for name in wrapped.state_dict() if "lora_" in name)
    with tempfile.TemporaryDirectory(prefix="try-adapters-", dir=scratch) as place:
        try:
            save_adapters(wrapped, Path(place), {name: torch.zeros(1)})
            whole = merged(wrapped)
        except Exception as error:  # noqa: BLE001 - what the library cannot write or merge it says in many ways
            refused = disk_error(error, place)
            if refused:
                raise refused from None
            raise InputError(
                f"{folder}: adapters of {', '.join(settings.targets)} cannot be merged and saved ({reason(error)})",
                "choose other lora.targets, or train all weights (rank = 0)",
            ) from None
    try_saving(whole, folder, scratch, load_tokenizer)


def merged(wrapped: Any) -> nn.Module:
    """The model with the adapters added to its weights, as if there had been none."""
    model: nn.Module = wrapped.merge_and_unload()
    return model


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Of a model, tied ones once: `{"trained", "all"}`."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {"trained": sum(size for size, is_trained in sizes if is_trained), "all": sum(size for size, _ in sizes)}
