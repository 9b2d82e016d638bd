"""A config is checked before anything is trained: one table of keys, and what their values must be."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import yaml

from fastreid_today.changes import change, replaces, wrap

Rule = tuple[Callable[[Any], bool], str]  # whether a value will do, and what is wanted


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(low: int, what: str = "a whole number") -> Rule:
    return lambda value: type(value) is int and value >= low, f"{what} of {low} or more"


def _one_of(*names: str) -> Rule:
    return lambda value: value in names, f"one of {', '.join(names)}"


def _all_of(rule: Rule, what: str, count: int = 0) -> Rule:
    return lambda value: len(value) == (count or len(value)) and all(map(rule[0], value)), what


def _is_device(value: str) -> bool:
    try:
        device = torch.device(value)
    except RuntimeError:
        return False
    # Without any CUDA the model goes to the CPU, with a warning: cpu.py.
    return not (
        torch.cuda.is_available() and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    )


def _named_in(module: str) -> Rule:
    layers = f"fastreid.layers.{module}"
    return lambda value: hasattr(importlib.import_module(layers), value), f"a name of {layers}"


def _can_be_written(folder: str) -> bool:
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except OSError:
        return False
    return os.access(folder or ".", os.W_OK | os.X_OK)


NOT_NEGATIVE: Rule = (lambda value: _is_number(value) and value >= 0, "a number of 0 or more")
POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, "a number above 0")
SHARE: Rule = (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
SIZE = _all_of(_whole(1), "two whole numbers of pixels above 0, [height, width]", 2)
NAMES: Rule = (lambda value: len(value) > 0, "one data set or more")
FOLDER: Rule = (_can_be_written, "a folder that can be made and written")
EPOCHS, IMAGES, COUNT = _whole(1, "a number of epochs"), _whole(1, "a number of images"), _whole(0)
# Not SetReWeightSampler: its check of the batch size wants more than one round draws, and it waits for one that is it.
SAMPLERS = ("TrainingSampler", "NaiveIdentitySampler", "BalancedIdentitySampler", "ImbalancedDatasetSampler")
OPTIMIZERS = [name for name, kind in vars(torch.optim).items() if inspect.isclass(kind) and name != "Optimizer"]

EVALUATOR = "evaluation.reid_evaluation:ReidEvaluator.__init__"
# Each function of fast-reid checks the keys that it reads, whoever calls it: a trainer, a loop of one's own, an
# evaluation alone. What a project replaces is the project's business.
RULES: dict[str, dict[str, Rule]] = {
    "data.build:build_reid_train_loader": {
        "INPUT.SIZE_TRAIN": SIZE,
        "INPUT FLIP.PROB CJ.PROB AUTOAUG.PROB AUGMIX.PROB REA.PROB RPT.PROB": SHARE,
        "DATALOADER.SAMPLER_TRAIN": _one_of(*SAMPLERS),
        "DATALOADER.NUM_WORKERS": COUNT,
        "SOLVER.IMS_PER_BATCH": IMAGES,
        "DATASETS.NAMES": NAMES,
    },
    "data.build:build_reid_test_loader": {"INPUT.SIZE_TEST": SIZE, "TEST.IMS_PER_BATCH": IMAGES},
    "modeling.meta_arch.build:build_model": {
        "MODEL.DEVICE": (_is_device, "cpu, or cuda or cuda:N for a GPU that is there"),
        "MODEL BACKBONE.NORM HEADS.NORM": _one_of("BN", "syncBN", "GhostBN", "FrozenBN", "GN", ""),
        "MODEL HEADS.NUM_CLASSES HEADS.EMBEDDING_DIM": COUNT,
        "MODEL.HEADS.NECK_FEAT": _one_of("before", "after"),
        "MODEL.HEADS.POOL_LAYER": _named_in("pooling"),
        "MODEL.HEADS.CLS_LAYER": _named_in("any_softmax"),
        "MODEL.HEADS.SCALE": POSITIVE,
        "MODEL.HEADS.MARGIN": NOT_NEGATIVE,
        "MODEL.PIXEL_STD": _all_of(POSITIVE, "numbers above 0"),
    },
    "solver.build:build_optimizer": {
        "SOLVER.OPT": _one_of(*OPTIMIZERS),
        "SOLVER BASE_LR HEADS_LR_FACTOR BIAS_LR_FACTOR": NOT_NEGATIVE,
        "SOLVER WEIGHT_DECAY WEIGHT_DECAY_NORM WEIGHT_DECAY_BIAS": NOT_NEGATIVE,
        "SOLVER.MOMENTUM": SHARE,
        "SOLVER.FREEZE_ITERS": COUNT,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": _one_of("norm", "value"),
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    },
    "solver.build:build_lr_scheduler": {
        "SOLVER.SCHED": _one_of("MultiStepLR", "CosineAnnealingLR"),
        "SOLVER.STEPS": _all_of(_whole(1), "whole numbers of epochs above 0"),
        "SOLVER GAMMA ETA_MIN_LR WARMUP_FACTOR": NOT_NEGATIVE,
        "SOLVER WARMUP_ITERS DELAY_EPOCHS": COUNT,
        "SOLVER.WARMUP_METHOD": _one_of("linear", "constant", "exp"),
    },
    "engine.defaults:default_setup": {"OUTPUT_DIR": FOLDER},
    "engine.defaults:DefaultTrainer.__init__": {
        "OUTPUT_DIR": FOLDER,
        "SOLVER MAX_EPOCH CHECKPOINT_PERIOD": EPOCHS,
        "TEST.EVAL_PERIOD": EPOCHS,
    },
    EVALUATOR: {
        # fast-reid takes jaccard here as well, and fails: it is what re-ranking adds to another distance.
        "TEST.METRIC": _one_of("cosine", "euclidean"),
        "TEST.RERANK K1 K2": _whole(1),
        "TEST.RERANK.LAMBDA": SHARE,
    },
}


def check_rules(cfg: Any, target: str) -> None:
    """Raise ValueError for the first key of ``RULES[target]`` whose value will not do, with what is wanted."""
    from fastreid.utils import comm

    ranks = comm.get_world_size()
    for names, (will_do, wanted) in RULES[target].items():
        node, *rest = names.split()
        for key in [f"{node}.{name}" for name in rest] or [node]:
            value: Any = cfg
            for part in key.split("."):
                value = value.get(part) if value is not None else None
            if value is not None and not will_do(value):
                meant = near(value, wanted.removeprefix("one of ").split(", "))
                raise ValueError(f"{key} must be {wanted}, got {value!r}{meant}")
            if key.endswith("IMS_PER_BATCH") and value < ranks:
                raise ValueError(f"{key} {value} leaves no image for each of {ranks} ranks: raise it")
            if value == "syncBN" and ranks > 1 and str(cfg.MODEL.DEVICE).startswith("cpu"):
                raise ValueError(f"{key} is syncBN, which torch has for ranks on GPUs alone: set it to BN")


@change("the functions that read a config", "values that fail late, far from their key, or train nothing")
def config_values() -> None:
    """Each checks what it reads against one table: a ValueError names the key, the value and what is wanted."""
    for target in RULES:
        wrap(target, functools.partial(_checked, target))


def _checked(target: str, stock: Callable, *arguments: Any, **options: Any) -> Any:
    config = next((value for value in (*arguments, *options.values()) if hasattr(value, "MODEL")), None)
    if config is not None:  # a loader can be built without
        check_rules(config, target)
    return stock(*arguments, **options)


@replaces("solver.build:build_optimizer", "MODEL.FREEZE_LAYERS misspelt freezes nothing")
def layers_to_freeze(build, cfg, model, *arguments, **options):
    """A name that no parameter begins with is a ValueError."""
    names = [name for name, _ in model.named_parameters()]
    for layer in cfg.MODEL.FREEZE_LAYERS:
        if not any(re.match(layer, name) for name in names):
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(
                f"MODEL.FREEZE_LAYERS has {layer!r}, which no parameter begins with: the parts are {parts}"
            )
    return build(cfg, model, *arguments, **options)


@replaces("modeling.meta_arch.build:build_model", "weights of a backbone that cannot be had: the network's traceback")
def pretrained_weights(build, cfg, *arguments, **options):
    """Without internet, or with a PRETRAIN_PATH that is no file, a ValueError names the key that helps."""
    try:
        return build(cfg, *arguments, **options)
    except OSError as error:  # of requests, urllib or open
        given = cfg.MODEL.BACKBONE.PRETRAIN_PATH
        raise ValueError(
            f"cannot read the backbone's weights from {given}: set MODEL.BACKBONE.PRETRAIN_PATH to a file"
            if given
            else "cannot download the backbone's weights: set MODEL.BACKBONE.PRETRAIN False, or give them as a file by "
            "MODEL.BACKBONE.PRETRAIN_PATH"
        ) from error


@replaces("engine.launch:launch", "`--num-gpus -1` silently trains on one rank; too many: an assertion in each rank")
def ranks_that_are_there(launch, main_func, num_gpus_per_machine, *arguments, **options):
    """A number of GPUs that are not there is an error at once."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else None
    if num_gpus_per_machine < 0 or (there is not None and num_gpus_per_machine > there):
        raise ValueError(f"--num-gpus is {num_gpus_per_machine}, but this machine has {there or 'no'} GPUs")
    return launch(main_func, num_gpus_per_machine, *arguments, **options)


@replaces("config.config:CfgNode.load_yaml_with_base", "a config file that is broken, empty or no YAML at all")
def config_file(load, filename, *arguments, **options):
    """A ValueError that names the file."""
    try:
        loaded = load(filename, *arguments, **options)
        problem = "" if isinstance(loaded, dict) else "it does not hold keys, as MODEL: or SOLVER:"
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
    except (TypeError, UnicodeDecodeError):  # of None, for an empty file; of what is no text
        problem = "it is empty, or not the text of a config"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise ValueError(f"{filename} cannot be read as a config: {problem}")
    return loaded


@replaces("config.config:CfgNode.merge_from_other_cfg", "unknown keys and wrong types: yacs's errors, without a hint")
def config_keys(merge, self, cfg_other):
    """A ValueError names the key, and the key that was probably meant."""
    _check_nodes(self, cfg_other, "")
    return _merge(merge, self, cfg_other)


@replaces("config.config:CfgNode.merge_from_list", "the same, on the command line; `--resume PATH` is read as a key")
def config_options(merge, self, cfg_list):
    """The same."""
    words = list(cfg_list)
    path = words and ("/" in str(words[0]) or str(words[0]).endswith(".pth"))
    if path or len(words) % 2:
        hint = "; --resume takes no path, it goes on from the last checkpoint of OUTPUT_DIR" if path else ""
        raise ValueError(f"config options come as KEY value, got {' '.join(map(str, words[:4]))!r}{hint}")
    return _merge(merge, self, cfg_list)


def _check_nodes(node: Any, other: Any, path: str) -> None:
    for key, value in other.items():
        mine = node.get(key)
        if isinstance(mine, dict) and not isinstance(value, dict):
            raise ValueError(f"{path}{key} must hold the keys {', '.join(mine)}, got {value!r}")
        if value is None and mine is not None:
            raise ValueError(f"{path}{key} has no value: give one, or leave the key out")
        if isinstance(mine, dict):
            _check_nodes(mine, value, f"{path}{key}.")


def _merge(merge: Callable, config: Any, given: Any) -> Any:
    try:
        return merge(config, given)
    except (AssertionError, KeyError, ValueError) as error:
        said = str(error.args[0] if error.args else error)
        key = said.rpartition(": ")[2].strip("'\"")
        known = [name for name in _names(config) if name.rpartition(".")[2] == key.rpartition(".")[2]] or _names(config)
        raise ValueError(f"{said}{near(key, known) if 'xist' in said else ''}") from error


def near(name: object, known: Iterable[str]) -> str:
    """The end of a message on a name that is not known; empty where none of ``known`` is near."""
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f", did you mean {close[0]}?" if close else ""


def _names(node: Any, path: str = "") -> list[str]:
    parts = [(f"{path}{key}", value) for key, value in node.items()]
    return [name for key, value in parts for name in (_names(value, f"{key}.") if isinstance(value, dict) else [key])]
