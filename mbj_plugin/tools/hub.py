"""``mbj hub RUN FOLDER``: a finished run as a model folder of timm's, which loads without us.

timm's own ``save_for_hf`` writes weights and config; the model card beside them names data, groups and settings.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from timm.data import resolve_data_config
from timm.models import model_entrypoint, save_for_hf

from mbj_plugin import logit_adjustment
from mbj_plugin.command_line import one_line
from mbj_plugin.tools.files import new_folder
from mbj_plugin.tools.finished_run import FinishedRun, saved_results
from mbj_plugin.tools.parser import OneLineParser
from mbj_plugin.tools.trainer.args import make_parser
from mbj_plugin.tools.trainer.build import channels
from mbj_plugin.tools.trainer.error_table import error_table
from mbj_plugin.tools.trainer.flags import PLACES

#: Classifiers that a folder can have: their keys in results.json, and what they are.
CLASSIFIERS = {
    "mbj": ("memory", "the memory classifier of Memory-based Jitter (MBJ)"),
    "batch": ("batch", "the batch classifier, which is that of a run without MBJ"),
    "adjusted": ("batch_adjusted", "the batch classifier with logits adjusted for the class sizes, tau 1"),
}
PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
STRUCTURE = ("architecture", "classifier", "first_conv", "pool_size")
FILES = ("class_map", "initial_checkpoint", "pretrained_path", "mbj_class_counts")
CARD = Path(__file__).with_name("card.md")


def write_folder(folder: Path, output: Path, licence: str = "unknown", classifier: str | None = None) -> str:
    """Write ``output``/config.json, model.safetensors and README.md; the name of the architecture is returned.

    ``output`` is a folder that is new or empty, and ``licence`` written as Hugging Face does. The default classifier is
    what the user chose at the start: "mbj" with ``--mbj``.
    """
    results = saved_results(folder)
    run = FinishedRun(folder, images=False)
    if run.unfinished:
        raise ValueError(f"{folder} is not finished: its checkpoint is of {run.unfinished}")
    trained = run.classifiers()
    chosen = classifier or ("mbj" if run.args.mbj else "batch")
    if chosen == "adjusted" and run.adjusted_already() == 0:
        trained["adjusted"] = logit_adjustment.logit_adjusted(*trained["batch"], run.counts.tolist())
    if chosen not in trained:
        raise ValueError(f"--classifier {chosen}: this run has {' and '.join(trained)}, and --loss {run.args.loss}")
    run.put(trained[chosen])
    architecture = _describe(run.model, run.args, bool(results["settings"].get("pretrained")))
    names = {"label_names": results["class_names"]} if results["class_names"] else {}
    with new_folder(output) as part:
        save_for_hf(run.model, str(part), model_config=names, model_args=_model_args(run.args), safe_serialization=True)
        (part / "README.md").write_text(
            model_card(architecture, results, output.name, licence, chosen), encoding="utf-8"
        )
    return architecture


def needs_plugin(architecture: str) -> bool:
    """Whether the architecture is one that the plugin registers with timm."""
    return model_entrypoint(architecture).__module__.startswith("mbj_plugin.")


def _describe(model: Any, args: Namespace, pretrained: bool) -> str:
    """Put the run's preprocessing where timm looks for the model's; the name of its architecture.

    Of pretrained weights that the run did not start from, neither tag nor licence nor address is kept.
    """
    resolved = resolve_data_config(vars(args), model=model)
    kept = {k: v for k, v in model.pretrained_cfg.items() if pretrained or k in STRUCTURE}
    model.pretrained_cfg = kept | {name: resolved[name] for name in PREPROCESSING}
    return kept["architecture"]


def _model_args(args: Namespace) -> dict[str, Any]:
    """What the model was made with and is evaluated with; rates of dropout are for training."""
    given = {"in_chans": channels(args), "global_pool": args.gp, "bn_eps": args.bn_eps}
    return dict(args.model_kwargs) | {name: value for name, value in given.items() if value is not None}


def model_card(architecture: str, results: dict[str, Any], name: str, licence: str, chosen: str) -> str:
    """The text of README.md, from the content of results.json and the chosen one of :data:`CLASSIFIERS`."""
    settings = results["settings"]
    trained = results["classifiers"]
    rows = {title: [trained[key]["errors"]] for key, title in CLASSIFIERS.values() if key in trained}
    details = {
        "MBJ": {k: v for k, v in (results["mbj"] or {}).items() if v is not None},
        "Seed": {"": settings.get("seed")},
        "Settings other than mbj train's defaults": _changed(settings),
        "Versions": results["versions"],
    }
    card = ModelCard.from_template(
        ModelCardData(license=licence, library_name="timm", tags=["image-classification", "timm", "long-tailed"]),
        template_path=str(CARD),
        name=name,
        architecture=architecture,
        kind=CLASSIFIERS[chosen][1],
        table=error_table(rows, "markdown", results["headline"]),
        settings=settings,
        data=settings.get("dataset") or Path(settings.get("data_dir") or "images").name,
        counts=results["class_counts"],
        images=results["evaluation_images"],
        details={title: values for title, values in details.items() if values},
        plugin=needs_plugin(architecture),
    )
    return str(card)


def _changed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that are not mbj train's defaults; of files only the name, for it was somebody's machine."""
    defaults = vars(make_parser().parse_args([]))
    changed = {k: v for k, v in settings.items() if k not in PLACES and k in defaults and v != defaults[k]}
    return {k: Path(v).name if k in FILES else v for k, v in changed.items()}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = OneLineParser(
        prog="mbj hub",
        description="Write a finished run of mbj train as a folder that timm loads as local-dir:FOLDER, and that "
        "`hf upload USER/NAME FOLDER` puts on Hugging Face's hub: weights, config, and a model card that names data, "
        "errors and settings. It needs neither the images nor internet access.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder to write; it must be empty or not exist yet"
    )
    parser.add_argument(
        "--classifier", choices=CLASSIFIERS, help="classifier to write (default: mbj for a run with --mbj, else batch)"
    )
    parser.add_argument(
        "--license", default="unknown", help="license of the model, for its card (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    with one_line("mbj hub"):
        architecture = write_folder(args.run, args.folder, args.license, args.classifier)
        print(f'Written: timm.create_model("local-dir:{args.folder}", pretrained=True) loads it')
        if needs_plugin(architecture):
            print(f"after import mbj_plugin.timm, which registers {architecture}")


if __name__ == "__main__":
    main()
