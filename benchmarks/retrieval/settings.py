"""The one YAML of settings: data sets with their recipes, methods as keys of MODEL, and named groups of cells."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastreid.config import CfgNode, get_cfg
from fastreid.data.datasets import DATASET_REGISTRY

from benchmarks.cells import Retired, check_known, read_settings
from benchmarks.retrieval import backbone, characters, variants  # noqa: F401, they register what the settings name
from benchmarks.rivals import feature_cloud  # noqa: F401, as well
from mbj_plugin.fastreid.config import checked
from mbj_plugin.fastreid.datasets import TAIL_SIZE, register_edition
from mbj_plugin.tools.fastreid.train import find_config

#: The parts of a config that a row carries: what makes the run, without paths and logging.
RECORDED = ("MODEL", "INPUT", "DATALOADER", "SOLVER", "TEST")
#: What makes no difference to a row, so that it can be given as an option: where and in what batches the model runs.
FREE = ("MODEL.DEVICE", "TEST.IMS_PER_BATCH")
#: A row does not carry these: every cell is tested once, after its last epoch, since a test draws random numbers.
UNRECORDED = (*FREE, "TEST.EVAL_PERIOD")
#: Keys of MODEL.MBJ that are younger than the first rows, which stand for these values, and one that is gone.
LATER = {"RAMP": 0, "SAMPLE": 0, "PRIOR_CORRECTION": False, "SEED": None}
GONE = {"INTERVAL": 1}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the tables, by the names that its row carries."""

    dataset: str
    num_head: int
    tail_size: int
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset} <H{self.num_head},S{self.tail_size}> {self.method} seed {self.seed}"

    @property
    def file_name(self) -> str:
        return f"{self.dataset}-H{self.num_head}-S{self.tail_size}-{self.method}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A registered data set that has editions <H, S>, and the config of its recipe."""

    name: str
    config: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """The whole YAML. ``methods``: name to what it changes in MODEL, by node; one with a node MBJ has MBJHead."""

    datasets: dict[str, Dataset]
    methods: dict[str, dict[str, dict[str, Any]]]
    groups: dict[str, dict[str, Any]]
    retired: dict[str, Retired] = dataclasses.field(default_factory=dict)

    def cells(
        self,
        dataset: str,
        num_head: Iterable[int],
        methods: Iterable[str],
        seeds: Iterable[int],
        tail_size: int = TAIL_SIZE,
    ) -> list[Cell]:
        """All combinations, seed by seed, so that an interrupted run holds pairs.

        Raises:
            ValueError: for a name that the settings do not have, naming the nearest.
        """
        check_known("data set", dataset, self.datasets)
        methods = list(methods)
        for method in methods:
            check_known("method", method, self.methods)
        product = itertools.product(seeds, num_head, methods)
        return [Cell(dataset, heads, tail_size, method, seed) for seed, heads, method in product]

    def group(self, name: str) -> list[Cell]:
        """The cells of a named group.

        Raises:
            ValueError: for an unknown group.
        """
        check_known("group", name, self.groups)
        return self.cells(**self.groups[name])

    def config(self, cell: Cell, options: Iterable[str] = ()) -> CfgNode:
        """fast-reid's config of a cell, without OUTPUT_DIR.

        Args:
            cell: which.
            options: config options on top, ``KEY value ...``, of :data:`FREE`.

        Raises:
            ValueError: for an option that would change the result or has no value, for a key that fast-reid does not
                have, or an H or S out of range.
        """
        options = list(options)
        if len(options) % 2:
            raise ValueError(f"options are pairs, KEY VALUE: {options[-1]} has no value")
        if changing := [key for key in options[::2] if key not in FREE]:
            raise ValueError(
                f"{changing[0]} may change the result: set it in the recipe. Options are {', '.join(FREE)}"
            )
        dataset, method = self.datasets[cell.dataset], self.methods[cell.method]
        cfg = get_cfg()
        own = Path(__file__).with_name("configs") / dataset.config
        cfg.merge_from_file(str(own) if own.is_file() else find_config(dataset.config))
        try:
            base = DATASET_REGISTRY.get(dataset.name)
        except KeyError as error:
            raise ValueError(f"data set {cell.dataset!r} of the settings: there is no {dataset.name!r}") from error
        name = register_edition(base, cell.num_head, cell.tail_size)
        cfg.merge_from_list(["DATASETS.NAMES", (name,), "DATASETS.TESTS", (dataset.name,)])
        cfg.merge_from_list(["MODEL.HEADS.NAME", "MBJHead" if "MBJ" in method else "EmbeddingHead"])
        for node, values in method.items():
            for key, value in values.items():
                try:
                    cfg.merge_from_list([f"MODEL.{node}.{key}", value])
                except ValueError as error:
                    raise ValueError(f"method {cell.method!r} of the settings: {error}") from error
        cfg.merge_from_list(options)
        cfg.TEST.EVAL_PERIOD = cfg.SOLVER.MAX_EPOCH
        return cfg

    def of(self, cell: Cell) -> dict[str, Any]:
        """What makes the run of a cell, as plain types, where it is not fast-reid's default: the ``settings`` of its
        row. MODEL.MBJ is there whole, since its defaults are ours to change."""
        cfg, default = self.config(cell), get_cfg()
        recorded = {name: _difference(cfg[name], default[name], name) for name in RECORDED}
        recorded["MODEL"].pop("MBJ", None)
        if "MBJ" in self.methods[cell.method]:
            recorded["MODEL"]["MBJ"] = GONE | {
                key: value
                for key, value in cfg.MODEL.MBJ.items()
                if f"MODEL.MBJ.{key}" not in UNRECORDED and (key not in LATER or value != LATER[key])
            }
        return {name: values for name, values in recorded.items() if values}


def load_settings(path: str | Path | None = None) -> Settings:
    """Settings from a YAML file; by default ``benchmarks/retrieval/settings.yaml``.

    Raises:
        ValueError: for a file that cannot be read, an unknown key or method, or a value out of range.
    """
    source = Path(path) if path else Path(__file__).with_name("settings.yaml")
    content = read_settings(source, {"datasets", "methods", "groups"})
    try:
        datasets = {name: Dataset(**values) for name, values in content["datasets"].items()}
        methods = {
            name: {node: dict(keys) for node, keys in nodes.items()} for name, nodes in content["methods"].items()
        }
        retired = {name: Retired(**values) for name, values in content.get("retired", {}).items()}
        return _checked(Settings(datasets, methods, content["groups"], retired))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the settings {source} are not of the shipped file's shape: {error}") from error


def _checked(settings: Settings) -> Settings:
    for method in settings.methods.values():
        for key, value in method.get("MBJ", {}).items():
            checked(key, value)
    for name, group in settings.groups.items():
        if not set(group) <= {"dataset", "num_head", "tail_size", "methods", "seeds"}:
            raise ValueError(
                f"group {name!r} may hold dataset, num_head, tail_size, methods and seeds: {sorted(group)}"
            )
        settings.group(name)
    return settings


def _difference(node: CfgNode, default: CfgNode, path: str) -> dict[str, Any]:
    different: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            if inner := _difference(value, default[key], f"{path}.{key}"):
                different[key] = inner
        elif value != default[key] and f"{path}.{key}" not in UNRECORDED:
            different[key] = list(value) if isinstance(value, tuple) else value
    return different
