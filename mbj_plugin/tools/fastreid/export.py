"""`mbj export RUN`: a run's config and weights for fast-reid without the plugin.

What MBJ adds is for training: the config loses MODEL.MBJ and names EmbeddingHead, the checkpoint loses the memories.
The features are the same. A backbone of timm's comes with the file that registers it, which needs no plugin.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from fastreid_today.checkpoints import load_checkpoint
from mbj_plugin.fastreid import timm_backbone
from mbj_plugin.fastreid.checkpoint import SAVED_MEMORY
from mbj_plugin.fastreid.datasets import EDITION
from mbj_plugin.tools.fastreid import one_line
from mbj_plugin.tools.files import new_folder

CONFIG = "config.yaml"


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config as fast-reid without the plugin reads it."""
    try:
        model = {name: node for name, node in config["MODEL"].items() if name != "MBJ"}
        heads, losses = dict(model["HEADS"]), dict(model["LOSSES"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it is not the config.yaml of a fast-reid run: it lacks MODEL.HEADS or MODEL.LOSSES") from None
    if heads.get("NAME") == "MBJHead":
        heads["NAME"] = "EmbeddingHead"
    names = losses.get("NAME", ())
    losses["NAME"] = [name for name in ([names] if isinstance(names, str) else names) if name != "MBJLoss"]
    data = dict(config.get("DATASETS", {}))
    # Query and gallery of an edition <H, S> are those of its data set.
    data["TESTS"] = [EDITION.sub(r"\1", name) for name in data.get("TESTS", ())]
    return {**config, "MODEL": {**model, "HEADS": heads, "LOSSES": losses}, "DATASETS": data}


def export(run: Path, output: Path, weights: str = "model_final.pth") -> dict[str, Any]:
    """Write ``output``/config.yaml and the weights beside it, with the file of a backbone of timm's. ``output`` is a
    folder that is new or empty; the config that was written is returned."""
    for file in (run / CONFIG, run / weights):
        if not file.is_file():
            names = ", ".join(sorted(path.name for path in run.glob("*.pth"))) or "none"
            raise ValueError(f"{file} is not there: give the OUTPUT_DIR of a run; checkpoints in {run}: {names}")
    try:
        config = plain_config(yaml.safe_load((run / CONFIG).read_text()))
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {run / CONFIG}: {str(error).splitlines()[0]}") from error
    state = load_checkpoint(run / weights)["model"]
    name = Path(weights).name
    config["MODEL"]["WEIGHTS"] = str(output / name)
    model = {key: value for key, value in state.items() if not SAVED_MEMORY.search(key)}
    with new_folder(output) as folder:
        torch.save({"model": model}, folder / name)
        (folder / CONFIG).write_text(yaml.safe_dump(config))
        if needs_timm(config):
            shutil.copy(timm_backbone.__file__, folder)
    return config


def needs_timm(config: dict[str, Any]) -> bool:
    """Whether the model's backbone is one of timm's."""
    return config["MODEL"].get("BACKBONE", {}).get("NAME") == timm_backbone.build_timm_backbone.__name__


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="mbj export",
        description="Write a fast-reid run's config and weights in a form that fast-reid loads without the plugin.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="OUTPUT_DIR of a run, which holds config.yaml")
    parser.add_argument("--output", type=Path, help="folder for the files (default: RUN/plain)")
    parser.add_argument("--weights", default="model_final.pth", help="checkpoint of the run (default: %(default)s)")
    args = parser.parse_args(argv)
    output = args.output or args.run / "plain"
    with one_line("mbj export"):
        config = export(args.run, output, args.weights)
    print(f"{output / CONFIG} and {output / Path(args.weights).name} need no plugin")
    if needs_timm(config):
        file = output / Path(timm_backbone.__file__).name
        print(f"{file} registers the backbone with timm and fast-reid alone: import it before the model is built")


if __name__ == "__main__":
    main()
