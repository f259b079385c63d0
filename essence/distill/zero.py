"""Training under DeepSpeed: ZeRO-2 shards gradients and AdamW's moments among the ranks, ZeRO-3 the weights too.

Masters and sums of gradients are float32. A student that is trained whole in bfloat16 computes with bfloat16 weights,
as in every backend (`essence/distill/float32_masters.py`); adapters are float32, under autocast.
DeepSpeed's own optimisers and its shared-memory communication are compiled on first use and not needed: torch's AdamW
is handed in, and gloo or NCCL do the communication.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from essence.distill.adamw import MOMENTS, adamw, set_cycle
from essence.distill.batches import Batch, head_weight
from essence.distill.checkpoint import Checkpoint
from essence.distill.float32_masters import lower_weights, lowers_weights, without_rounding
from essence.distill.module import Distiller
from essence.distill.ranks import WAITS, Ranks, limit_waits
from essence.distill.schedule import CyclePoint
from essence.settings import TrainSettings
from essence.sizes.memory import ZERO_BUCKET_ELEMENTS, Dtype


class ZeroBackend:
    """One rank of a DeepSpeed engine."""

    def __init__(
        self,
        distiller: Distiller,
        settings: TrainSettings,
        ranks: Ranks,
        device: torch.device,
        found: Checkpoint | None,
    ) -> None:
        """Shard `distiller`, whose weights are those of `found` already, and put the moments of `found` back."""
        self.student, self.settings, self.ranks, self.device = distiller.student, settings.optimizer, ranks, device
        self.stage = 2 if settings.parallel == "zero2" else 3
        if self.stage == 3:
            _deepspeed().zero.register_external_parameter(distiller.objective, head_weight(self.student))
        lowered = lowers_weights(settings)
        exact = _rounded(self.student) if lowered else {}
        if found:
            # Its masters come from the checkpoint: two copies of all weights would not fit beside each other.
            exact.clear()
        config = {
            **_config(self.stage, ranks, device),
            **(_mixed(settings.reduce_dtype) if lowered else {}),
            "gradient_clipping": self.settings.gradient_clip_norm,
        }
        optimizer = adamw(self.student.parameters(), self.settings)
        self.engine: Any = _engine(distiller, config, optimizer=optimizer)
        if lowered:
            self._restore_masters(exact, found)
        if found:
            self._restore_moments(found)

    def accumulate(
        self,
        batch: Batch,
        weights: Tensor,
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
        last: bool,
    ) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        loss, ce, kd = self.engine(batch, weights, teacher_states, teacher_head)
        self.engine.backward(loss * self.ranks.processes)  # DeepSpeed takes the mean over the ranks
        return torch.stack([loss.detach(), ce, kd])

    def step(self, point: CyclePoint) -> float:
        set_cycle(self.engine.optimizer, point, self.settings)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def cross_entropy(self, batch: Batch, weights: Tensor) -> Tensor:
        with torch.no_grad():
            ce: Tensor = self.engine(batch, weights)[1]
        return ce

    def weight(self, parameter: nn.Parameter) -> Tensor:
        found: Tensor = _deepspeed().utils.safe_get_full_fp32_param(parameter)
        return found

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        found: Tensor = _deepspeed().utils.safe_get_full_optimizer_state(parameter, name)
        return found

    def _restore_moments(self, found: Checkpoint) -> None:
        """Fill every rank's shard from the whole moments, however many ranks wrote them."""
        optimizer = self.engine.optimizer
        flat = optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        for group in flat:
            step = torch.tensor(float(found.step), device=group.device)
            optimizer.optimizer.state[group] = {"step": step, **{name: torch.zeros_like(group) for name in MOMENTS}}
        if self.stage == 2:
            optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.student.named_parameters():
            for moment in MOMENTS:
                if parameter.requires_grad:
                    self._set_moment(parameter, moment, found.tensor(f"{moment}/{name}").to(self.device))

    def _restore_masters(self, exact: dict[str, Tensor], found: Checkpoint | None) -> None:
        """DeepSpeed makes masters from rounded weights; put what was rounded off back where there was any."""
        utilities = _deepspeed().utils
        for name, parameter in self.student.named_parameters():
            value = found.tensor(f"weight/{name}") if found and parameter.requires_grad else exact.pop(name, None)
            if value is None:
                continue
            if self.stage == 2:
                utilities.safe_set_full_fp32_param(parameter, value.to(self.device))
            else:
                utilities.safe_set_local_fp32_param(parameter, self._share(parameter, value.to(self.device)))

    def _set_moment(self, parameter: Any, name: str, value: Tensor) -> None:
        utilities = _deepspeed().utils
        if self.stage == 2:
            utilities.safe_set_full_optimizer_state(parameter, value, name)
        else:
            utilities.safe_set_local_optimizer_state(parameter, self._share(parameter, value), name)

    def _share(self, parameter: Any, value: Tensor) -> Tensor:
        """What this rank holds of a whole tensor under ZeRO-3: equal parts of it laid out flat, the last one padded."""
        share = parameter.ds_tensor.numel()
        padded = torch.zeros(share * self.ranks.processes, device=self.device)
        padded[: value.numel()] = value.flatten()
        return padded[self.ranks.rank * share :][:share]


def shard_frozen(model: nn.Module, dtype: torch.dtype, ranks: Ranks) -> None:
    """Leave every rank its share of a model that is only read; layers come together as they are needed."""
    device = next(model.parameters()).device
    _engine(model, {**_config(3, ranks, device), "bf16": {"enabled": dtype == torch.bfloat16}})
    model.eval()


def _rounded(student: nn.Module) -> dict[str, Tensor]:
    """Round the weights that are trained; what they were, where that was more than the rounding holds."""
    exact = lower_weights(student)
    weights = dict(student.named_parameters())
    return {name: value for name, value in exact.items() if not without_rounding(weights[name], value)}


def _engine(model: nn.Module, config: dict[str, object], **more: Any) -> Any:
    """DeepSpeed's engine, which would round a model's buffers with its weights: rotary angles are float32."""
    kept = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    groups = _deepspeed().utils.groups
    if groups._WORLD_GROUP is None:
        # DeepSpeed's own would wait PyTorch's 30 minutes, whatever the backend.
        groups._WORLD_GROUP = limit_waits(dist.new_group(timeout=WAITS["gloo"]))
    engine: Any = _deepspeed().initialize(model=model, config=config, dist_init_required=False, **more)[0]
    for name, buffer in model.named_buffers():
        buffer.data = kept[name].to(buffer.device)
    return engine


def _config(stage: int, ranks: Ranks, device: torch.device) -> dict[str, object]:
    return {
        "train_batch_size": ranks.processes,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the loop says itself where a step ends
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": device.type == "cuda",
            "reduce_bucket_size": ZERO_BUCKET_ELEMENTS,
            "allgather_bucket_size": ZERO_BUCKET_ELEMENTS,
            # Each gradient goes to the rank that updates it, and not to all of them.
            "use_multi_rank_bucket_allreduce": False,
        },
    }


def _mixed(reduce_dtype: Dtype) -> dict[str, object]:
    """Weights bfloat16, masters and sums of gradients float32; whether they are finite the loop looks at."""
    return {
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": {"float32": "fp32", "bfloat16": "bf16"}[reduce_dtype],
    }


def _deepspeed() -> Any:
    """DeepSpeed, without the extension that it would compile when the ranks meet on a CPU."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", message=r"`torch.distributed\..*` is deprecated", category=FutureWarning)
    return deepspeed
