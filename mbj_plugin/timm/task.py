"""timm's classification task with a memory, which belongs to the criterion and is saved beside the model."""

from __future__ import annotations

import logging
from typing import Any

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

from mbj_plugin.timm.compat import check_task_state
from mbj_plugin.timm.criterion import MBJLoss
from mbj_plugin.timm.head import full_state, recording_layers

_logger = logging.getLogger(__name__)


class MBJTask(ClassificationTask):
    """``ClassificationTask`` whose criterion is an :class:`MBJLoss`, bound to the model here.

    The memory and the batch classifier are in the checkpoint's ``task_state``. The model's own ``state_dict``, whose
    classifier is the memory classifier, stays what stock timm loads. An EMA averages both classifiers, and no memory.

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
        check_task_state()
        super().__init__(model, criterion.bind(model), device=device, dtype=dtype, verbose=verbose)

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> ClassificationTask:
        """Wrap the model in DistributedDataParallel. On CPU, which takes no device ids, they are left out."""
        device_ids = None if self.device.type == "cpu" else device_ids
        return super().prepare_distributed(device_ids=device_ids, **ddp_kwargs)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """What a run without MBJ clips; see :mod:`mbj_plugin.timm.clip`."""
        module = self.get_trainable_module()
        assert module is not None
        return self.criterion.clip_parameters(module, exclude_head)

    def update_ema(self, step: int | None = None) -> None:
        """As timm's, of both classifiers."""
        modules = (self.get_trainable_module(), self.get_trainable_module(ema=True))
        with full_state(*(module for module in modules if module is not None)):
            super().update_ema(step)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The memories and the batch classifier, as tensors on the CPU; of an average the batch classifier alone."""
        state = {} if ema else {"mbj": _on_cpu(self.criterion.memories)}
        if layers := self._recording_layers(ema):
            state["batch_classifier"] = _on_cpu(nn.ModuleList(layer.batch_classifier for layer in layers))
        return state

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Restore the memories and the batch classifier.

        A checkpoint of a run without MBJ has neither: training goes on with empty memories and two equal classifiers.

        Raises:
            ValueError: for memories of another kind, size or counts, or where one of the two runs had a shared
                classifier.
        """
        if not state:
            if not ema:
                _logger.warning(
                    "The checkpoint has no memory (it is of a run without MBJ): starting with an empty one."
                )
            return
        layers = self._recording_layers(ema)
        if bool(layers) != ("batch_classifier" in state):
            had = "own" if "batch_classifier" in state else "shared"
            raise ValueError(f"the checkpoint's run had --mbj-classifier {had}: set it as it was")
        if not ema:
            self._load_memories(state["mbj"])
        if layers:
            nn.ModuleList(layer.batch_classifier for layer in layers).load_state_dict(state["batch_classifier"])
            for layer in layers:
                layer.recorder.trained = True

    def _load_memories(self, saved: dict[str, Tensor]) -> None:
        own = self.criterion.memories.state_dict()
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
        self.criterion.memories.load_state_dict(saved)

    def _recording_layers(self, ema: bool) -> list[Any]:
        module = self.get_trainable_module(ema)
        return [] if module is None else recording_layers(module)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """timm's result dict, with the parts of the loss beside ``loss``; see :attr:`MBJLoss.parts`."""
        result = super().forward(input, target)
        return {**result, **self.criterion.parts}


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
