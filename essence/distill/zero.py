"""Training under DeepSpeed: ZeRO-2 shards gradients and AdamW's moments among the ranks, ZeRO-3 the weights too.

Masters are float32 and the computation runs under autocast, as in every backend, so that all of them compute the same.
DeepSpeed's own optimisers and its shared-memory communication are compiled on first use and not needed: torch's AdamW
is handed in, and gloo or NCCL do the communication.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from essence.distill.adamw import MOMENTS, adamw, set_cycle
from essence.distill.batches import Batch, head_weight
from essence.distill.checkpoint import Checkpoint
from essence.distill.module import Distiller
from essence.distill.ranks import Ranks
from essence.distill.schedule import CyclePoint
from essence.settings import OptimizerSettings


class ZeroBackend:
    """One rank of a DeepSpeed engine."""

    def __init__(
        self,
        distiller: Distiller,
        settings: OptimizerSettings,
        stage: int,
        ranks: Ranks,
        device: torch.device,
        found: Checkpoint | None,
    ) -> None:
        """Shard `distiller`, whose weights are those of `found` already, and put the moments of `found` back."""
        self.student, self.settings, self.ranks, self.device, self.stage = (
            distiller.student,
            settings,
            ranks,
            device,
            stage,
        )
        if stage == 3:
            _deepspeed().zero.register_external_parameter(distiller.objective, head_weight(self.student))
        config = {
            **_config(stage, ranks),
            "gradient_clipping": settings.gradient_clip_norm,
        }
        self.engine: Any = _deepspeed().initialize(
            model=distiller, optimizer=adamw(self.student, settings), config=config, dist_init_required=False
        )[0]
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

    def _set_moment(self, parameter: Any, name: str, value: Tensor) -> None:
        utilities = _deepspeed().utils
        if self.stage == 2:
            utilities.safe_set_full_optimizer_state(parameter, value, name)
            return
        share = parameter.ds_tensor.numel()
        padded = torch.zeros(share * self.ranks.processes, device=self.device)
        padded[: value.numel()] = value.flatten()
        utilities.safe_set_local_optimizer_state(parameter, padded[self.ranks.rank * share :][:share], name)


def shard_frozen(model: nn.Module, dtype: torch.dtype, ranks: Ranks) -> None:
    """Leave every rank its share of a model that is only read; layers come together as they are needed."""
    config = {**_config(3, ranks), "bf16": {"enabled": dtype == torch.bfloat16}}
    _deepspeed().initialize(model=model, config=config, dist_init_required=False)
    model.eval()


def _config(stage: int, ranks: Ranks) -> dict[str, Any]:
    return {
        "train_batch_size": ranks.processes,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the loop says itself where a step ends
        "zero_optimization": {"stage": stage},
    }


def _deepspeed() -> Any:
    """DeepSpeed, without the extension that it would compile when the ranks meet on a CPU."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", message=r"`torch.distributed\..*` is deprecated", category=FutureWarning)
    return deepspeed
