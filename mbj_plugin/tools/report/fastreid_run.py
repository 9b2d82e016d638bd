"""What a run folder of fast-reid holds, read for the report; its model is run once more on its own data."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import mbj_plugin.fastreid  # noqa: F401  isort: skip  # fast-reid cannot be imported before it
import fastreid.data.build as data_build
import numpy as np
import torch
import yaml
from fastreid.config import get_cfg
from fastreid.data.build import fast_batch_collator
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.transforms import build_transforms
from fastreid.modeling.meta_arch import build_model
from torch import nn
from torch.utils.data import DataLoader

from fastreid_today.checkpoints import load_checkpoint
from mbj_plugin.fastreid.run_folder import read_classes
from mbj_plugin.tools.report.run import RunRecord, read_bank, series
from mbj_plugin.tools.report.search import SCORES, SearchImages, scores, scores_by_size, search

CHECKPOINTS = ("model_final.pth", "model_best.pth")
CURVES = {
    "total_loss": "total loss",
    "loss_mbj": "memory loss",
    "lr": "learning rate",
    "cls_accuracy": "batch accuracy",
}
BANK = re.compile(r"(?:(?P<head>.*)\.)?memories\.(?P<kind>\w+)\.bank\.(?P<entry>\w+)")


def read_run(run: RunRecord, folder: Path, args: Namespace) -> None:
    """Fill in everything that is there; ``args`` are those of the report's command."""
    logging.getLogger("fastreid").setLevel(logging.ERROR)
    run.curve_unit = "iteration"
    with run.part("config.yaml"):
        run.settings = dotted(yaml.safe_load((folder / "config.yaml").read_text()))
        run.facts["model"] = f"{run.settings['MODEL.META_ARCHITECTURE']}, {run.settings['MODEL.HEADS.NAME']}"
        run.facts["training set"] = ", ".join(map(str, run.settings["DATASETS.NAMES"]))
    with run.part("curves (metrics.json)"):
        _read_metrics(run, folder)
    if sizes := read_classes(folder):
        run.class_counts = np.array(list(sizes.values()))
        run.class_names = [name.rpartition("_")[2] for name in sizes]
        run.facts["training images"] = f"{run.class_counts.sum():,} of {len(sizes):,} identities"
    with run.part("checkpoint"):
        state = _checkpoint(run, folder)
        run.memories = {kind: read_bank(bank) for kind, bank in _banks(state).items()}
        if not args.no_model:
            with run.part("retrieval"):
                _search(run, folder, state, args)


def dotted(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    if not isinstance(node, dict):
        raise ValueError("it holds no settings")
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _read_metrics(run: RunRecord, folder: Path) -> None:
    run.diagnostics = rows = run.read_lines(folder / "metrics.json", "iteration")
    for key in dict.fromkeys(key for row in rows for key in row):
        name = CURVES.get(key, key.removeprefix("loss_") + " loss" if key.startswith("loss_") else None)
        points = series(rows, "iteration", key)
        if key.rpartition("/")[2] in SCORES and points[0]:
            name, run.retrieval[key] = key, points[1][-1]
        if name and points[0]:
            run.curves[name] = {"": points}


def _checkpoint(run: RunRecord, folder: Path) -> dict[str, Any]:
    """The model's state in the last checkpoint."""
    pointer = folder / "last_checkpoint"
    last = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    path = next((folder / name for name in (Path(last).name, *CHECKPOINTS) if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"there is no {' and no '.join(CHECKPOINTS)}, so no memory and no retrieval")
    run.facts["checkpoint"] = path.name
    return dict(load_checkpoint(path)["model"])


def _banks(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """State of each memory in the model's state; those of a model with several heads carry the head's name."""
    banks: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        if match := BANK.fullmatch(key):
            head = match["head"] or "heads"
            kind = match["kind"] if head == "heads" else f"{head} {match['kind']}"
            banks.setdefault(kind, {})[match["entry"]] = value
    return banks


def _search(run: RunRecord, folder: Path, state: dict[str, Any], args: Namespace) -> None:
    """Run the model on its test sets."""
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "config.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.BACKBONE.PRETRAIN", False])
    if run.class_counts is not None:
        cfg.MODEL.HEADS.NUM_CLASSES = len(run.class_counts)
    root = args.data or data_build._root
    model = build_model(cfg)
    absent, _ = model.load_state_dict(state, strict=False)
    if absent := [key for key in absent if ".memories." not in key]:
        raise ValueError(f"the checkpoint does not hold {absent[0]} of the model that config.yaml describes")
    tricks = [key for key in ("FLIP", "AQE", "RERANK") if cfg.TEST[key].ENABLED]
    if tricks:
        run.missing.append(f"scores of the model as it is now are without {' and '.join(tricks)}, which the run used")
    for name in cfg.DATASETS.TESTS:
        with run.part(f"retrieval on {name}"):
            try:
                dataset = DATASET_REGISTRY.get(name)(root=root)
            except (RuntimeError, OSError, KeyError) as error:
                raise ValueError(
                    f"cannot read {name} in {root}: set FASTREID_DATASETS, or give --data ({error})"
                ) from error
            queries, gallery = (_extract(model, sorted(part), cfg) for part in (dataset.query, dataset.gallery))
            found = search(queries, gallery, cosine=cfg.TEST.METRIC == "cosine")
            run.searches[name] = found
            run.facts[f"{name}, {len(found):,} queries"] = ", ".join(f"{k} {v:.1f} %" for k, v in scores(found).items())
            if cfg.DATASETS.COMBINEALL:  # fast-reid trains on them under this name
                run.retrieval_by_size |= scores_by_size(read_classes(folder), found, "_test_")
            elif getattr(dataset, "trains_on_test_identities", False):
                run.retrieval_by_size |= scores_by_size(read_classes(folder), found, "_")


@torch.no_grad()
def _extract(model: nn.Module, items: list[Any], cfg: Any) -> SearchImages:
    """Features as fast-reid compares them."""
    dataset = CommDataset(items, build_transforms(cfg, is_train=False), relabel=False)
    loader = DataLoader(
        dataset, cfg.TEST.IMS_PER_BATCH, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=fast_batch_collator
    )
    rows, identities, cameras, paths = [], [], [], []
    for batch in loader:
        batch["images"] = batch["images"].to(next(model.parameters()).device)  # fast-reid's own loader does it there
        rows.append(model.eval()(batch).float().cpu().numpy())
        identities.append(np.asarray(batch["targets"]))
        cameras.append(np.asarray(batch["camids"]))
        paths += batch["img_paths"]
    return SearchImages(np.concatenate(rows), np.concatenate(identities), np.concatenate(cameras), paths)
