"""What each rank runs in tests/distill/test_once_loaded.py: load a model, tell what it holds.

`python loading_program.py WHOLE CONFIGURED OUT`: the first rank has the whole folder, the others the one that holds
config.json alone.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from essence.distill.first_rank_loading import load_once
from essence.distill.ranks import Ranks

CPU = torch.device("cpu")


def main(whole: Path, configured: Path, out: Path) -> None:
    ranks = Ranks.of(os.environ)
    ranks.join(CPU)
    told = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = load_once(whole if ranks.first else configured, dtype, ranks, CPU)
        digest = hashlib.sha256()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
        states = model(torch.tensor([[1, 2, 3]])).logits.detach()
        told[str(dtype)] = {
            "sha256": digest.hexdigest(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "logits": float(states.double().sum()),
        }
    (out / f"rank-{ranks.rank}.json").write_text(json.dumps(told))
    ranks.leave()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
