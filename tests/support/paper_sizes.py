"""The sizes of the paper's models and of one of its trainings."""

from essence.sizes.architecture import Architecture
from essence.sizes.memory import PLAIN_BYTES_PER_LOGIT, DeviceLoad


def qwen3(hidden: int, layers: int, heads: int, intermediate: int, tied: bool) -> Architecture:
    return Architecture(hidden, layers, heads, 8, 128, intermediate, 151_936, tied)


QWEN3 = {
    "0.6b": qwen3(1024, 28, 16, 3072, True),
    "1.7b": qwen3(2048, 28, 16, 6144, True),
    "4b": qwen3(2560, 36, 32, 9728, True),
    "8b": qwen3(4096, 36, 32, 12288, False),
    "32b": qwen3(5120, 64, 64, 25600, False),
}
PAPER = DeviceLoad(
    student=QWEN3["4b"],
    teacher=QWEN3["8b"],
    compute_dtype="bfloat16",
    activation_checkpointing=True,
    packed=False,
    positions=4096,
    labels=4096,
    loss_bytes_per_logit=PLAIN_BYTES_PER_LOGIT,
    loss_bytes=0,
    parallel="zero3",
    devices=4,
    teacher_placement="sharded",
)
