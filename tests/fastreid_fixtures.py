# ruff: noqa: E402
"""A tiny Market-1501 layout and a tiny backbone, for real runs of the real fast-reid in a second or two."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastreid.config", reason="fast-reid is not installed")

importlib.import_module("mbj_plugin.fastreid")  # before anything of fast-reid

from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage

from benchmarks.retrieval.synthetic import Plan, draw_dataset

ROOT = Path(__file__).resolve().parents[1]
# Where there is CUDA, fast-reid's loader puts every batch there.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = Plan(train=24, head=4, head_images=8, tail_images=2, test=6, test_images=4)


@BACKBONE_REGISTRY.register()
def build_tiny_backbone(cfg):
    """Two convolutions to 16 channels."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, 2, 1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
    )


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Folder that FASTREID_DATASETS names."""
    root = tmp_path_factory.mktemp("datasets")
    draw_dataset(root, TINY)
    return root


@pytest.fixture
def tiny_plan():
    """What ``data_root`` was drawn from."""
    return TINY


@pytest.fixture
def make_cfg(data_root, tmp_path, monkeypatch):
    """make_cfg(KEY, value, ...): a config of a tiny run with MBJHead, two epochs of nine iterations."""
    monkeypatch.setattr("fastreid.data.build._root", str(data_root))

    def make(*opts):
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                *("MODEL.DEVICE", DEVICE, "MODEL.BACKBONE.NAME", "build_tiny_backbone", "MODEL.BACKBONE.FEAT_DIM", 16),
                *("MODEL.HEADS.NAME", "MBJHead", "MODEL.HEADS.WITH_BNNECK", True, "MODEL.MBJ.START", 0),
                *("INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16], "DATALOADER.NUM_WORKERS", 0),
                *("SOLVER.MAX_EPOCH", 2, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", [1]),
                *("SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 2, "OUTPUT_DIR", str(tmp_path / "out"), *opts),
            ]
        )
        return cfg

    return make


@pytest.fixture
def make_trainer(make_cfg):
    """make_trainer(KEY, value, ...): a DefaultTrainer, with the same seed each time."""

    def make(*opts):
        cfg = make_cfg(*opts)
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        seed_all_rng(3)
        return DefaultTrainer(cfg)

    return make


@pytest.fixture
def steps():
    """steps(trainer, n): n iterations without hooks; returns the loss dict of each."""

    def run(trainer, count):
        losses = []
        inner = trainer._trainer
        write = inner._write_metrics
        inner._write_metrics = lambda loss_dict, data_time: (losses.append(loss_dict), write(loss_dict, data_time))
        with EventStorage(0) as storage:
            for inner.iter in range(count):
                inner.run_step()
            run.scalars = {name: value for name, (value, _) in storage.latest().items()}
        return losses

    return run


@pytest.fixture
def command(data_root):
    """command(arguments, cwd, ...): run Python with the plugin's source on the path; returns the finished process."""

    def run(*arguments, cwd, python=sys.executable, check=True, path=ROOT, **variables):
        env = dict(os.environ, OMP_NUM_THREADS="1", FASTREID_DATASETS=str(data_root), **variables)
        env["PYTHONPATH"] = str(path)
        result = subprocess.run(
            [python, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300
        )
        if check and result.returncode:
            raise AssertionError(f"{arguments} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result

    return run


TINY_OPTS = [
    *("MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25"),
    *("MODEL.BACKBONE.FEAT_DIM", "128", "MODEL.HEADS.NAME", "MBJHead"),
    *("INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.MAX_EPOCH", "1", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.WARMUP_ITERS", "0", "MODEL.MBJ.START", "0"),
]


@pytest.fixture
def tiny_opts():
    """Command-line options of a run of a few seconds with the smallest backbone of fast-reid's own."""
    return list(TINY_OPTS)


@pytest.fixture
def script(tmp_path):
    """A training script that knows nothing of the plugin, as fast-reid's tools/train_net.py, and a config for it."""
    (tmp_path / "config.yml").write_text("MODEL:\n  HEADS:\n    WITH_BNNECK: True\n")
    path = tmp_path / "own_train_net.py"
    path.write_text(
        "import sys\n"
        "sys.path.append('.')\n"
        "from fastreid.config import get_cfg\n"
        "from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch\n\n\n"
        "def main(args):\n"
        "    cfg = get_cfg()\n"
        "    cfg.merge_from_file(args.config_file)\n"
        "    cfg.merge_from_list(args.opts)\n"
        "    default_setup(cfg, args)\n"
        "    trainer = DefaultTrainer(cfg)\n"
        "    trainer.resume_or_load(resume=args.resume)\n"
        "    return trainer.train()\n\n\n"
        "if __name__ == '__main__':\n"
        "    args = default_argument_parser().parse_args()\n"
        "    launch(main, args.num_gpus, dist_url='auto', args=(args,))\n"
    )
    return path
