"""Two gloo ranks under fast-reid's trainer against one process that sees both halves of each batch.

The network has no batch norm, so that two halves are the whole batch.
"""

import multiprocessing
import socket
from types import SimpleNamespace

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.engine import DefaultTrainer
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.meta_arch import build_model
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage

from fastreid_today.cpu import gloo_worker
from mbj_plugin.fastreid import collect, counts

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is CUDA, fast-reid takes NCCL and GPUs")
STEPS, BATCH, LR, MOMENTUM = 8, 4, 0.05, 0.9  # the batch of each rank
OPTS = [
    *("MODEL.BACKBONE.NAME", "build_plain_backbone", "MODEL.HEADS.WITH_BNNECK", False, "MODEL.HEADS.NUM_CLASSES", 24),
    *("MODEL.HEADS.CLS_LAYER", "CosSoftmax", "MODEL.HEADS.SCALE", 8, "MODEL.MBJ.MEMORY", "both"),
    *("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 30, "MODEL.MBJ.ETA", 0.5, "MODEL.MBJ.BETA", 1.0, "MODEL.MBJ.START", 0),
    *("SOLVER.OPT", "SGD", "SOLVER.MOMENTUM", MOMENTUM, "SOLVER.NESTEROV", False, "SOLVER.BASE_LR", LR),
    *("SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.0),
    *("SOLVER.IMS_PER_BATCH", 2 * BATCH),
]


@BACKBONE_REGISTRY.register()
def build_plain_backbone(cfg):
    """Two convolutions to 16 channels, without batch norm."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2, 1), torch.nn.ReLU()
    )


def batch(step, rank):
    g = torch.Generator().manual_seed(10 * step + rank)
    images = torch.rand(BATCH, 3, 32, 16, generator=g) * 255
    return {"images": images, "targets": torch.randint(0, 24, (BATCH,), generator=g)}


def one_rank(text, root, output):
    """Takes every step as one of two ranks, and saves gradients, weights and memories."""
    torch.set_num_threads(1)
    from fastreid.data import build

    build._root = str(root)
    seed_all_rng(3)
    trainer = DefaultTrainer(CfgNode.load_cfg(text))
    inner, rank = trainer._trainer, comm.get_rank()
    inner._data_loader_iter = iter([batch(step, rank) for step in range(STEPS)])
    model = inner.model.module
    saved = {"start": {name: value.clone() for name, value in model.state_dict().items()}, "gradients": []}
    losses = []
    with EventStorage(0) as storage:
        for _ in range(STEPS):
            inner.run_step()
            saved["gradients"].append({name: p.grad.clone() for name, p in model.named_parameters()})
            losses.append({name: value for name, (value, _) in storage.latest().items() if name.startswith("loss")})
    torch.save({**saved, "state": model.state_dict(), "losses": losses}, f"{output}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(data_root, tmp_path_factory):
    """What each rank saved, and the config."""
    from fastreid.config import get_cfg

    output = tmp_path_factory.mktemp("ranks")
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *(
                "MODEL.DEVICE",
                "cpu",
                "MODEL.BACKBONE.FEAT_DIM",
                16,
                "MODEL.HEADS.NAME",
                "MBJHead",
                "MODEL.MBJ.START",
                0,
            ),
            *("INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16], "DATALOADER.NUM_WORKERS", 0),
            *("SOLVER.WARMUP_ITERS", 0, "OUTPUT_DIR", str(output), *OPTS),
        ]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    multiprocessing.set_forkserver_preload(["mbj_plugin.fastreid"])
    arguments = (one_rank, 2, 2, 0, url, (cfg.dump(), data_root, output))
    torch.multiprocessing.start_processes(gloo_worker, arguments, nprocs=2, start_method="forkserver")
    return [torch.load(output / f"{rank}.pt", weights_only=False) for rank in range(2)], cfg


def close(found, expected, name):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6, msg=lambda m: f"{name}: {m}")


def test_two_ranks_are_one_process_on_the_whole_batch(ranks, data_root, monkeypatch):
    (first, second), cfg = ranks
    seed_all_rng(3)
    model = build_model(cfg).train()
    model.load_state_dict(first["start"])
    monkeypatch.setattr("fastreid.data.build._root", str(data_root))
    loader = DefaultTrainer.build_train_loader(cfg)
    counts.prepare(model, SimpleNamespace(dataset=loader.dataset))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR, momentum=MOMENTUM)
    for step in range(STEPS):
        halves = [batch(step, rank) for rank in range(2)]
        with EventStorage(0):
            losses = model({key: torch.cat([half[key] for half in halves]) for key in halves[0]})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        for found in (first, second):
            for name, p in model.named_parameters():
                close(found["gradients"][step][name], p.grad, f"step {step}, gradient of {name}")
        assert first["losses"][step] == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)
    for name, value in model.state_dict().items():
        close(first["state"][name], value, name)
        assert torch.equal(first["state"][name], second["state"][name]), name
    for memory in collect.mbj_heads(model)[0].memories.values():
        assert memory.bank.filled == 30
    assert losses["loss_mbj"] > 0
