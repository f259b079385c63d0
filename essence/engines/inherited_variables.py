"""The caller's variables that a local process inherits: all but those that would change a result.

A container has none of it (`Launch.contained_variables`), and the numbers are to be the same under every engine.
"""

import os
import re

from essence.record.facts import SCHEDULER_VARIABLES

SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)
LAUNCHER = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|ROLE_NAME|NNODES|NODE_RANK|MASTER_(ADDR|PORT)|RDZV_.*"
    r"|(TORCHELASTIC|TORCHRUN|SLURM|PMI2?|PMIX|PRTE|OMPI|MPI|MV2|MPICH|HYDRA|I_MPI|FLUX|PALS|PET)_.*"
    r"|(ACCELERATE|FSDP|DEEPSPEED|DS)_.*|(CROSS|LOCAL)_(RANK|SIZE)|ESSENCE_(LIFELINE|PARENT|HOST|HELD_GPUS)"
)
"""Who this process would be among others: left by torchrun, a job, or a shell in which somebody has tried them."""
NUMERICS = re.compile(
    r"(OMP|GOMP|KMP|MKL|DNNL|ONEDNN|RAYON|NUMEXPR)_.*|OPENBLAS_NUM_THREADS|ATEN_CPU_CAPABILITY"
    r"|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|CUBLAS_WORKSPACE_CONFIG|VLLM_.*"
)
"""How numbers are rounded, on how many threads."""
PYTHON = re.compile(r"PYTHON(?!DONTWRITEBYTECODE|PYCACHEPREFIX).*")
"""Which modules are found, whether assertions hold, how text is encoded."""


def inherited() -> dict[str, str]:
    """The caller's environment without secrets, and without what the patterns above name."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in SCHEDULER_VARIABLES
        or not (SECRET.search(name) or any(kind.fullmatch(name) for kind in (LAUNCHER, NUMERICS, PYTHON)))
    }
