"""A run folder of ``train_timm``, or of timm's own train.py: its arguments, its checkpoint, its model run again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mbj_plugin.timm.trainer.args import make_parser
from mbj_plugin.timm.trainer.checkpoint import read_checkpoint

CHECKPOINTS = ("last.pth.tar", "model_best.pth.tar")


def saved_args(folder: Path, device: str, data: str | None) -> Namespace:
    """The run's arguments, for one process, this device and nothing that would be downloaded.

    Args:
        folder: of the run.
        device: where the model runs.
        data: folder of the images, where they are no longer where the run found them.

    Raises:
        ValueError: where the folder does not hold them.
    """
    path = folder / "args.yaml"
    if not path.is_file():
        raise ValueError("there is no args.yaml, which says what the model and the data are")
    saved = yaml.safe_load(path.read_text())
    if not isinstance(saved, dict):
        raise ValueError("args.yaml holds no arguments")
    fixed = {"device": device, "distributed": False, "world_size": 1, "rank": 0, "local_rank": 0, "prefetcher": False}
    fixed |= {"pretrained": False, "initial_checkpoint": "", "torchscript": False, "channels_last": False}
    fixed |= {"dataset_download": False, "pretrained_path": None}
    fixed |= {"data_dir": data} if data else {}
    # The parser's defaults for what timm's train.py has no flag for: no config, so nothing of the digits'.
    return Namespace(**{**vars(make_parser().parse_args([])), **saved, **fixed})


def newest_checkpoint(folder: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Name and content of the last checkpoint, or of the best one where the last is broken, and the broken ones' names.

    Raises:
        ValueError: where there is none.
    """
    found = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if not found:
        raise ValueError(f"there is no {' and no '.join(CHECKPOINTS)} in the run's folder")
    broken: list[str] = []
    for path in found:
        try:
            return path.name, read_checkpoint(str(path)), broken
        except ValueError:
            broken.append(path.name)
    return "", {}, broken


def evaluated_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """State dict of the model that was evaluated: the averaged one, where there is one."""
    return checkpoint.get("state_dict_ema") or checkpoint["state_dict"]


def memory_states(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """State of each memory in the checkpoint, by its kind; none for a run without MBJ."""
    states: dict[str, dict[str, Any]] = {}
    for key, value in ((checkpoint.get("task_state") or {}).get("mbj") or {}).items():
        kind, bank, entry = [*key.split(".", 2), "", ""][:3]
        if bank == "bank":
            states.setdefault(kind, {})[entry] = value
    return states


@torch.no_grad()
def run_images(
    model: nn.Module, layers: list[nn.Module], loader: Any, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(B,) true classes, (B, C) logits and (B, D) inputs of the classifier's ``layers`` of each batch, on the CPU.

    Unlabelled images are left out. Without layers the inputs are (B, 0).
    """
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0].flatten(1))) for layer in layers]
    model.eval()
    try:
        for images, labels in loader:
            inputs.clear()
            logits = model(images.to(device)).float().cpu()
            known = labels >= 0
            features = torch.cat(inputs, dim=1).float().cpu() if inputs else logits[:, :0]
            yield labels[known], logits[known], features[known]
    finally:
        for hook in hooks:
            hook.remove()
