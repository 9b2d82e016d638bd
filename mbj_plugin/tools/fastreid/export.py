"""`python -m mbj_plugin.tools.fastreid.export RUN`: a run's config and weights for fast-reid without the plugin.

What MBJ adds is for training: the config loses MODEL.MBJ and names EmbeddingHead, the checkpoint loses the memories.
The features are the same. A backbone of timm's comes with the file that registers it, which needs no plugin.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY

from mbj_plugin.fastreid import timm_backbone
from mbj_plugin.fastreid.checkpoint import SAVED_MEMORY
from mbj_plugin.fastreid.datasets import EDITION
from mbj_plugin.files import atomic_path, write

CONFIG = "config.yaml"
CLOUD = re.compile(r"\.cls_layer\.(sums|step|seed)$")


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config as fast-reid without the plugin reads it.

    Raises:
        ValueError: for what is no config of a run.
    """
    try:
        model = {name: node for name, node in config["MODEL"].items() if name != "MBJ"}
        heads, losses = dict(model["HEADS"]), dict(model["LOSSES"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it is not the config.yaml of a fast-reid run: it lacks MODEL.HEADS or MODEL.LOSSES") from None
    if heads.get("NAME") == "MBJHead":
        heads["NAME"] = "EmbeddingHead"
    if heads.get("CLS_LAYER") == "FeatureCloud":  # which is CosFace but for training
        heads["CLS_LAYER"] = "CosSoftmax"
    losses["NAME"] = [name for name in losses.get("NAME", ()) if name != "MBJLoss"]
    return {**config, "MODEL": {**model, "HEADS": heads, "LOSSES": losses}}


def lacking(config: dict[str, Any]) -> list[str]:
    """What a config names that only the plugin has, and that plain fast-reid needs to run the model or to test it."""
    backbone = config["MODEL"].get("BACKBONE", {}).get("NAME")
    named = [(BACKBONE_REGISTRY, backbone), *((DATASET_REGISTRY, name) for name in config["DATASETS"]["TESTS"])]
    return [
        name
        for known, name in named
        if EDITION.fullmatch(str(name)) or getattr(known._obj_map.get(name), "__module__", "").startswith("mbj_plugin.")
    ]


def export(run: Path, output: Path, weights: str = "model_final.pth") -> dict[str, Any]:
    """Write ``output``/config.yaml and the weights beside it.

    Args:
        run: OUTPUT_DIR of a run.
        output: a folder, another one than ``run``; it is made.
        weights: which checkpoint of the run.

    Returns:
        The config that was written.

    Raises:
        ValueError: where the folder holds no run, or the output would write over it.
    """
    for file in (run / CONFIG, run / weights):
        if not file.is_file():
            names = ", ".join(sorted(path.name for path in run.glob("*.pth"))) or "none"
            raise ValueError(f"{file} is not there: give the OUTPUT_DIR of a run; checkpoints in {run}: {names}")
    if output.resolve() == run.resolve():
        raise ValueError(f"{output} is the run itself, whose files would be written over: give another --output")
    try:
        config = plain_config(yaml.safe_load((run / CONFIG).read_text()))
        state = torch.load(run / weights, map_location="cpu", weights_only=True)["model"]
    except Exception as error:  # YAML's, torch's, ours: whatever a broken file makes them say
        raise ValueError(f"cannot read {run / CONFIG} or {weights}: {str(error).splitlines()[0]}") from error
    output.mkdir(parents=True, exist_ok=True)
    config["MODEL"]["WEIGHTS"] = str(output / weights)
    model = {name: value for name, value in state.items() if not (SAVED_MEMORY.search(name) or CLOUD.search(name))}
    with atomic_path(output / weights) as part:
        torch.save({"model": model}, part)
    write(output / CONFIG, yaml.safe_dump(config))
    return config


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mbj_plugin.tools.fastreid.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of a run, which holds config.yaml")
    parser.add_argument("--output", type=Path, help="folder for the two files (default: RUN/plain)")
    parser.add_argument("--weights", default="model_final.pth", help="checkpoint of the run (default: %(default)s)")
    args = parser.parse_args(argv)
    output = args.output or args.run / "plain"
    config = export(args.run, output, args.weights)
    print(f"{output / CONFIG} and {output / args.weights} need no plugin")
    for name in lacking(config):
        if name == timm_backbone.build_timm_backbone.__name__:
            file = shutil.copy(timm_backbone.__file__, output)
            print(f"{file} registers {name} with timm and fast-reid alone: import it before the model is built")
            continue
        print(f"except for {name}, which plain fast-reid lacks: register your own, or import mbj_plugin.fastreid there")


if __name__ == "__main__":
    main()
