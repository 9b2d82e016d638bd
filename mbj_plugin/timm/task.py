"""timm's classification task with a memory, which belongs to the criterion and is saved beside the model."""

from __future__ import annotations

import logging
from typing import Any

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

from mbj_plugin.timm.criterion import MBJLoss

_logger = logging.getLogger(__name__)


class MBJTask(ClassificationTask):
    """``ClassificationTask`` whose criterion is an :class:`MBJLoss`, bound to the model here.

    The memory is in the checkpoint's ``task_state``: the model's own ``state_dict`` stays what stock timm loads, and
    an EMA of the model does not average the memory.

    Args:
        model: a timm model.
        criterion: the criterion; bound to ``model``.
        device: device of model and memory.
        dtype: as in timm.
        verbose: as in timm.

    Raises:
        ValueError: for a criterion that is no MBJLoss, or a model whose classifier cannot be found.
    """

    criterion: MBJLoss

    def __init__(
        self,
        model: nn.Module,
        criterion: MBJLoss,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        if not isinstance(criterion, MBJLoss):
            raise ValueError(f"MBJTask needs an MBJLoss(class_counts) as its criterion, got {type(criterion).__name__}")
        if isinstance(model, torch.jit.ScriptModule):
            raise ValueError("a scripted model hides its classifier: drop --torchscript, --torchcompile works")
        super().__init__(model, criterion.bind(model), device=device, dtype=dtype, verbose=verbose)

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> ClassificationTask:
        """Wrap the model in DistributedDataParallel. On CPU, which takes no device ids, they are left out."""
        device_ids = None if self.device.type == "cpu" else device_ids
        return super().prepare_distributed(device_ids=device_ids, **ddp_kwargs)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The memories, as tensors on the CPU; an EMA has none of its own."""
        if ema:
            return {}
        return {"mbj": {key: value.detach().cpu().clone() for key, value in self._memories().state_dict().items()}}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Restore the memories. A checkpoint of a run without MBJ has none: training goes on with empty ones.

        Raises:
            ValueError: for memories of another kind or size.
        """
        if ema:
            return
        if not state or "mbj" not in state:
            _logger.warning("The checkpoint has no memory (it is of a run without MBJ): starting with an empty one.")
            return
        own, saved = self._memories().state_dict(), state["mbj"]
        if own.keys() != saved.keys():
            different = sorted(own.keys() ^ saved.keys())
            raise ValueError(
                f"the checkpoint's memory is of another kind, it differs in {different[0]}: "
                "set --mbj-memory and --mbj-momentum as they were"
            )
        for key, value in saved.items():
            if value.shape != own[key].shape:
                raise ValueError(
                    f"the checkpoint's memory {key} is {tuple(value.shape)}, this run's {tuple(own[key].shape)}: "
                    "set --mbj-size (and the model) as they were"
                )
        self._memories().load_state_dict(saved)

    def _memories(self) -> nn.ModuleDict:
        return self.criterion.memories

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """timm's result dict, with ``loss_batch`` and ``loss_memory`` (eta * L_memory) beside ``loss``."""
        result = super().forward(input, target)
        return {**result, **self.criterion.parts}
