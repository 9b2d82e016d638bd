"""``python -m mbj_plugin.tools.hub RUN FOLDER``: a finished run as a model folder of timm's, which loads without us.

timm's own ``save_for_hf`` writes weights and config; the model card beside them names data, groups and settings.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import model_entrypoint, save_for_hf

from mbj_plugin.batch_losses import loss_class
from mbj_plugin.command_line import OneLineParser, one_line
from mbj_plugin.diagnostics.groups import GROUPS
from mbj_plugin.files import new_folder
from mbj_plugin.timm.compat import generate_readme
from mbj_plugin.tools.finished_run import evaluated_weights, newest_checkpoint, saved_args, saved_results
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.args import make_parser
from mbj_plugin.tools.trainer.flags import PLACES
from mbj_plugin.tools.trainer.ranges import channels

PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct")
FILES = ("class_map", "initial_checkpoint", "pretrained_path", "mbj_class_counts")
CITATION = """@article{liu2020mbj,
  title={Memory-based Jitter: Improving Visual Recognition on Long-tailed Data with Diversity In Memory},
  author={Liu, Jialun and Zhang, Jingwei and Li, Wenhui and Zhang, Chi and Sun, Yifan},
  journal={arXiv:2008.09809},
  year={2020}
}"""


def write_folder(run: Path, output: Path, licence: str = "unknown") -> str:
    """Write ``output``/config.json, model.safetensors and README.md.

    Args:
        run: folder of a finished run of ``train_timm``.
        output: a folder that is empty or not there.
        licence: of the model, as Hugging Face writes it.

    Returns:
        Name of the architecture.

    Raises:
        ValueError: where the run is not finished or cannot be loaded by timm, or ``output`` holds files.
    """
    results = saved_results(run)
    args = saved_args(run, "cpu", None)
    if hasattr(loss_class(args.loss), "adapt_model"):
        raise ValueError(f"--loss {args.loss} trains a classifier of its own kind, which no model of timm's has")
    _, checkpoint, broken = newest_checkpoint(run)
    if broken:
        raise ValueError(f"cannot read {run / broken[0]}, it is no checkpoint or cut short")
    model = build.make_model(args, torch.device("cpu"))
    model.load_state_dict(evaluated_weights(checkpoint))
    architecture = _describe_input(model, args)
    names = {"label_names": results["class_names"]} if results["class_names"] else {}
    with new_folder(output) as part:
        save_for_hf(model, str(part), model_config=names, model_args=_model_args(args), safe_serialization=True)
        (part / "README.md").write_text(model_card(architecture, results, output.name, licence), encoding="utf-8")
    return architecture


def needs_plugin(architecture: str) -> bool:
    """Whether the architecture is one that the plugin registers with timm."""
    return model_entrypoint(architecture).__module__.startswith("mbj_plugin.")


def _describe_input(model: Any, args: Namespace) -> str:
    """Put the run's preprocessing where timm looks for the model's; the name of its architecture."""
    resolved = resolve_data_config(vars(args), model=model)
    model.pretrained_cfg = {**model.pretrained_cfg, **{name: resolved[name] for name in PREPROCESSING}}
    return model.pretrained_cfg["architecture"]


def _model_args(args: Namespace) -> dict[str, Any]:
    """What the model was made with and is evaluated with; rates of dropout are for training."""
    given = {"in_chans": channels(args), "global_pool": args.gp, "bn_eps": args.bn_eps}
    return dict(args.model_kwargs) | {name: value for name, value in given.items() if value is not None}


def model_card(architecture: str, results: dict[str, Any], name: str, licence: str) -> str:
    """The text of README.md, in the form of timm's own cards.

    Args:
        architecture: of the model.
        results: of results.json.
        name: of the model.
        licence: as Hugging Face writes it.
    """
    settings = results["settings"]
    data = settings.get("dataset") or Path(settings.get("data_dir") or "images").name
    counts, errors = results["class_counts"], results["errors"]
    method = "Memory-based Jitter (MBJ)" if results["method"] == "mbj" else "no memory (a baseline)"
    details: dict[str, Any] = {
        "Data": f"{data}, split {settings.get('train_split')}: {results['images']:,} training images in "
        f"{len(counts):,} classes, {max(counts):,} of the largest, {min(counts):,} of the smallest",
        "Evaluated on": f"split {settings.get('val_split')}, {results['evaluation_images'] or 'a stream of'} images",
        "Error in percent": {"all": f"{errors['error']:.2f}"}
        | {title: " / ".join(f"{errors[k]:.2f}" if k in errors else "-" for k in ks) for title, ks in GROUPS.items()},
    }
    if results["mbj"]:
        details["MBJ"] = {k: v for k, v in results["mbj"].items() if v is not None}
    details["Seed"] = settings.get("seed")
    details["Settings other than train_timm's defaults"] = _changed(settings)
    details["Versions"] = results["versions"]
    imports = "import timm\n" + "import mbj_plugin.timm  # registers the architecture\n" * needs_plugin(architecture)
    usage = f'```python\n{imports}model = timm.create_model("local-dir:{name}", pretrained=True).eval()\n```\n\n'
    usage += "Once it is on the hub, `hf-hub:USER/NAME` stands for `local-dir:FOLDER`."
    card = {
        "license": licence,
        "tags": ["image-classification", "timm", "long-tailed"],
        "description": f"A {architecture} for {len(counts):,} classes, trained on long-tailed data with {method}.",
        "details": details,
        "usage": usage,
        "citation": CITATION,
    }
    return generate_readme(card, name)


def _changed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that are not train_timm's defaults; of files only the name, for it was somebody's machine."""
    defaults = vars(make_parser().parse_args([]))
    changed = {k: v for k, v in settings.items() if k not in PLACES and k in defaults and v != defaults[k]}
    return {k: Path(v).name if k in FILES else v for k, v in changed.items()}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = OneLineParser(
        prog="hub",
        description="Writes a finished run of train_timm as a folder that stock timm loads by local-dir:FOLDER, and "
        "that `hf upload USER/NAME FOLDER` puts on Hugging Face's hub: weights, config, and a model card that names "
        "data, groups and settings. Reads no image and asks no network.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="to write: empty, or not there")
    parser.add_argument("--license", default="unknown", help="of the model, for its card (default: %(default)s)")
    args = parser.parse_args(argv)
    with one_line("hub"):
        architecture = write_folder(args.run, args.folder, args.license)
        print(f'Written: timm.create_model("local-dir:{args.folder}", pretrained=True) loads it')
        if needs_plugin(architecture):
            print(f"after import mbj_plugin.timm, which registers {architecture}")


if __name__ == "__main__":
    main()
