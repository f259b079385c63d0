"""What one of four GPUs holds under PyTorch's FSDP in mixed precision, counted on a small model without the others.

`python fsdp_program.py`: prints bytes by dtype, at the loss of the second step and after it, as JSON. The other ranks
are PyTorch's fake process group, so weights have sizes and no meaning.
"""

import gc
import json

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen3Config, Qwen3ForCausalLM

DEVICES = 4


def held_bytes() -> dict[str, int]:
    """Of the storages of all tensors that live, by dtype."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, torch.nn.Parameter) or type(found).__name__ == "DTensor":
            storage = getattr(found, "_local_tensor", found).untyped_storage()
            storages[storage._cdata] = (str(found.dtype), storage.nbytes())
    names = {name for name, _ in storages.values()}
    return {each: sum(size for name, size in storages.values() if name == each) for each in names}


def main() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=DEVICES)
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=160,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    options = {
        "mesh": init_device_mesh("cpu", (DEVICES,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16),
    }
    for layer in [*model.model.layers, model]:
        fully_shard(layer, **options)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    told = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    for _ in range(2):
        loss = model(torch.zeros(1, 1, dtype=torch.long)).logits.sum()
        told["at_loss"] = held_bytes()
        loss.backward()
        optimizer.step()
    print(json.dumps({**told, "at_rest": held_bytes()}))


if __name__ == "__main__":
    main()
