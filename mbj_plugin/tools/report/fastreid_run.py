"""What a run folder of fast-reid holds, read for the report; its model is run once more on its own data."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

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
from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.report.run import Features, RunRecord, first_of_each, read_lines, read_memories, series
from mbj_plugin.tools.report.search import SearchImages, groups_by_matches, search

CHECKPOINTS = ("model_final.pth", "model_best.pth")
CURVES = {
    "total_loss": "total loss",
    "loss_mbj": "memory loss",
    "lr": "learning rate",
    "cls_accuracy": "batch accuracy",
}
SCORES = ("mAP", "mINP", "Rank-1")
TRAIN_QUERIES = 3000  # more add time and no precision
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
    checkpoint = read_memories(run, folder, lambda: _checkpoint(run, folder), _banks)
    with run.part("class sizes and images"):
        cfg = _config(folder, args.device, args.data)
        train = _training_set(run, cfg)
        if checkpoint and not args.no_model:
            with run.part("retrieval and embedding"):
                _run_model(run, cfg, checkpoint, train, args.images_per_class)


def dotted(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    if not isinstance(node, dict):
        raise ValueError("it holds no settings")
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _read_metrics(run: RunRecord, folder: Path) -> None:
    rows = read_lines(run, folder / "metrics.json", "iteration")
    for key in dict.fromkeys(key for row in rows for key in row):
        name = CURVES.get(key, key.removeprefix("loss_") + " loss" if key.startswith("loss_") else None)
        points = series(rows, "iteration", key)
        if key.rpartition("/")[2] in SCORES and points[0]:
            name, run.retrieval[key] = key, points[1][-1]
        if name and points[0]:
            run.curves[name] = points


def _checkpoint(run: RunRecord, folder: Path) -> dict[str, Any]:
    pointer = folder / "last_checkpoint"
    last = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    names = dict.fromkeys((CHECKPOINTS[0], Path(last).name, *CHECKPOINTS[1:]))
    found = [folder / name for name in names if name and (folder / name).is_file()]
    if not found:
        raise ValueError(f"there is no {' and no '.join(CHECKPOINTS)}, so no memory, no retrieval and no embedding")
    for path in found:
        try:
            state = dict(load_checkpoint(path)["model"])
        except (OSError, ValueError) as error:
            run.missing.append(f"checkpoint: {error}")
            continue
        run.facts["checkpoint"] = path.name
        return state
    return {}


def _banks(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """State of each memory in the model's state; those of a model with several heads carry the head's name."""
    banks: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        if match := BANK.fullmatch(key):
            head = match["head"] or "heads"
            kind = match["kind"] if head == "heads" else f"{head} {match['kind']}"
            banks.setdefault(kind, {})[match["entry"]] = value
    return banks


def _config(folder: Path, device: str, data: str | None) -> Any:
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "config.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.BACKBONE.PRETRAIN", False])
    if data:
        data_build._root = data
    return cfg


def _dataset(name: str, **options: Any) -> Any:
    try:
        return DATASET_REGISTRY.get(name)(root=data_build._root, **options)
    except (RuntimeError, OSError, KeyError) as error:
        raise ValueError(
            f"cannot read {name} in {data_build._root}: set FASTREID_DATASETS, or give --data ({error})"
        ) from error


def _training_set(run: RunRecord, cfg: Any) -> CommDataset:
    """The training images with evaluation's transforms; tells the run its classes."""
    combine = {"combineall": True} if cfg.DATASETS.COMBINEALL else {}  # query and gallery are trained on as well
    items = [item for name in cfg.DATASETS.NAMES for item in _dataset(name, **combine).train]
    if not items:
        raise ValueError(f"there are no training images of {', '.join(cfg.DATASETS.NAMES)} in {data_build._root}")
    train = CommDataset(items, build_transforms(cfg, is_train=False), relabel=True)
    labels = np.array([train.pid_dict[item[1]] for item in items])
    run.class_counts = np.bincount(labels, minlength=train.num_classes)
    run.class_names = [str(pid).rpartition("_")[2] for pid in train.pids]
    run.facts["training images"] = f"{len(items):,} of {train.num_classes} identities"
    return train


def _run_model(run: RunRecord, cfg: Any, state: dict[str, Any], train: CommDataset, images_per_class: int) -> None:
    cfg.MODEL.HEADS.NUM_CLASSES = cfg.MODEL.HEADS.NUM_CLASSES or train.num_classes
    cfg.freeze()
    model = build_model(cfg)
    absent, _ = model.load_state_dict(state, strict=False)
    if absent := [key for key in absent if ".memories." not in key]:
        raise ValueError(f"the checkpoint does not hold {absent[0]} of the model that config.yaml describes")
    cosine = cfg.TEST.METRIC == "cosine"
    for name in cfg.DATASETS.TESTS:
        with run.part(f"retrieval on {name}"):
            _search_test(run, cfg, model, name, cosine)
    images, neck = _extract(model, train, cfg)
    assert run.class_counts is not None
    with run.part("retrieval on training images"):
        every = max(len(images.rows) // TRAIN_QUERIES, 1)
        queries = images.part(np.arange(0, len(images.rows), every))
        found = search(queries, images, "among training images", cosine)
        masks = {n.replace("_", " "): np.isin(found.identity, c) for n, c in class_groups(run.class_counts).items()}
        found.groups = {name: mask for name, mask in masks.items() if mask.any()}
        run.searches.append(found)
    with run.part("features for the embedding"):
        if neck is None:
            raise ValueError("the model has no single bottleneck before its classifier")
        labels = images.identities
        chosen = first_of_each(labels, np.unique(labels), images_per_class)
        run.train_features = Features(neck[chosen], labels[chosen])


def _search_test(run: RunRecord, cfg: Any, model: nn.Module, name: str, cosine: bool) -> None:
    dataset = _dataset(name)
    queries = sorted(dataset.query)
    items = queries + sorted(dataset.gallery)
    images, _ = _extract(model, CommDataset(items, build_transforms(cfg, is_train=False), relabel=False), cfg)
    first, rest = np.arange(len(queries)), np.arange(len(queries), len(items))
    found = search(images.part(first), images.part(rest), f"{name}, test", cosine)
    found.groups = groups_by_matches(found.matches)
    if len(found.groups) < 2:
        found.note = f"every query of {name} has {next(iter(found.groups))}, so there are no groups"
    tricks = [key for key in ("FLIP", "AQE", "RERANK") if cfg.TEST[key].ENABLED]
    if tricks:
        found.note += f"{'; ' * bool(found.note)}scores here are without {' and '.join(tricks)}, which the run used"
    run.searches.append(found)
    precision, rank_1 = found.scores()
    run.facts[f"{name}, {len(queries):,} queries"] = f"mAP {precision:.1f} %, Rank-1 {rank_1:.1f} %"


@torch.no_grad()
def _extract(model: nn.Module, dataset: CommDataset, cfg: Any) -> tuple[SearchImages, np.ndarray | None]:
    """Features as fast-reid compares them, and (N, D) inputs of the classifier, None where there is no one layer."""
    neck: list[np.ndarray] = []
    bottleneck = getattr(getattr(model, "heads", None), "bottleneck", None)
    hook = None
    if bottleneck is not None:
        hook = bottleneck.register_forward_hook(lambda _, x, y: neck.append(y[..., 0, 0].float().cpu().numpy()))
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
    if hook is not None:
        hook.remove()
    images = SearchImages(np.concatenate(rows), np.concatenate(identities), np.concatenate(cameras), paths)
    return images, np.concatenate(neck) if neck else None
