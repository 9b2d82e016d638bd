"""What a model on the CPU needs: on a machine without CUDA, or with MODEL.DEVICE cpu where there is one."""

from __future__ import annotations

import logging
import multiprocessing
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from fastreid_today.changes import change, rebind, replaces, wrap

logger = logging.getLogger("fastreid.today")


class PlainLoader(DataLoader):
    """fast-reid's ``DataLoaderX(local_rank, **arguments of DataLoader)`` without its CUDA stream and its thread."""

    def __init__(self, local_rank, pin_memory=False, **arguments):
        super().__init__(pin_memory=False, **arguments)


@change("data/data_utils.py", "a model on the CPU: DataLoaderX makes CUDA streams and moves every batch to a GPU")
def cpu_loader() -> str | None:
    """The plain DataLoader in its place; where there is CUDA, only for a config whose MODEL.DEVICE is cpu."""
    from fastreid.data import build, data_utils

    stock = data_utils.DataLoaderX
    if not torch.cuda.is_available():
        rebind(stock, PlainLoader)
        return None

    def by_device(build_loader, *arguments, **options):
        config = next((value for value in (*arguments, *options.values()) if hasattr(value, "MODEL")), None)
        build.DataLoaderX = PlainLoader if config is not None and config.MODEL.DEVICE == "cpu" else stock
        try:
            return build_loader(*arguments, **options)
        finally:
            build.DataLoaderX = stock

    wrap("data.build:build_reid_train_loader", by_device)
    wrap("data.build:build_reid_test_loader", by_device)
    return None


@replaces(
    "modeling.meta_arch.build:build_model",
    "no CUDA: MODEL.DEVICE is `cuda` by default, and in configs dumped on a GPU machine",
    gpu=False,
)
def cpu_device(build, cfg):
    """Models whose MODEL.DEVICE is a CUDA device are built on the CPU, with a warning."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no CUDA: the model runs on the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL["DEVICE"] = "cpu"  # as an item, for the config may be frozen
    return build(cfg)


def _on_cpu(model: torch.nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


@replaces(
    "engine.train_loop:AMPTrainer.__init__",
    "a model on the CPU: `[AMPTrainer] CUDA is required for AMP training!` (most of its configs ask for AMP)",
)
def cpu_amp(init, self, model, data_loader, optimizer, param_wrapper, grad_scaler=None):
    """AMPTrainer trains in fp32 there, as SimpleTrainer does, with a warning."""
    from fastreid.engine.train_loop import SimpleTrainer

    if not _on_cpu(model):
        return init(self, model, data_loader, optimizer, param_wrapper, grad_scaler)
    logger.warning("SOLVER.AMP.ENABLED is set, but the model is on the CPU: training runs in fp32")
    SimpleTrainer.__init__(self, model, data_loader, optimizer, param_wrapper)
    self.grad_scaler = None
    return None


@replaces("engine.train_loop:AMPTrainer.run_step", "the same, in each step")
def cpu_amp_step(run_step, self):
    """A step of SimpleTrainer."""
    from fastreid.engine.train_loop import SimpleTrainer

    return run_step(self) if self.grad_scaler is not None else SimpleTrainer.run_step(self)


class HostDDP(DistributedDataParallel):
    """DistributedDataParallel, which refuses ``device_ids`` for modules on the CPU."""

    def __init__(self, module, device_ids=None, **arguments):
        super().__init__(module, device_ids=None if _on_cpu(module) else device_ids, **arguments)


@change("engine/defaults.py", "a model on the CPU: DistributedDataParallel refuses device_ids")
def cpu_ddp() -> str | None:
    """The trainer's DistributedDataParallel drops them there."""
    from fastreid.engine import defaults

    defaults.DistributedDataParallel = HostDDP
    return None


def gloo_worker(local_rank, main_func, world_size, ranks_per_machine, machine_rank, dist_url, args):
    """One rank of a run without CUDA: fast-reid's ``_distributed_worker`` over gloo. Arguments as there."""
    from fastreid.utils import comm

    # A spawned process spawns its own children by default, and so each worker of a loader would import torch again.
    # As on one rank, where the platform's default is fork; on macOS it is not, for good reasons.
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
    rank = machine_rank * ranks_per_machine + local_rank
    dist.init_process_group("gloo", init_method=dist_url, world_size=world_size, rank=rank)
    for machine in range(world_size // ranks_per_machine):
        group = dist.new_group(list(range(machine * ranks_per_machine, (machine + 1) * ranks_per_machine)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
    main_func(*args)
    dist.destroy_process_group()


@change("engine/launch.py", "no CUDA: `--num-gpus 2` asserts CUDA and asks for NCCL", gpu=False)
def cpu_launch() -> str | None:
    """Ranks run on the CPU over gloo."""
    if torch.cuda.is_available():
        return "CUDA is available"
    import fastreid.engine  # noqa: F401  (its `launch` is the function, so the module comes from sys.modules)

    # Not wrapped: spawned processes find it by its name, and fast-reid is repaired there too.
    sys.modules["fastreid.engine.launch"]._distributed_worker = gloo_worker  # type: ignore[attr-defined]
    return None


@replaces("utils.compute_dist:compute_jaccard_distance", "TEST.RERANK without CUDA or with faiss-cpu: `.cuda()`")
def cpu_rerank(jaccard, features, k1=20, k2=6, search_option=0, fp16=False):
    """Re-ranking searches with faiss on the CPU where there is no CUDA, or no faiss for it."""
    import faiss

    if torch.cuda.is_available() and hasattr(faiss, "StandardGpuResources"):
        return jaccard(features, k1=k1, k2=k2, search_option=search_option, fp16=fp16)
    return jaccard(features.cpu(), k1=k1, k2=k2, search_option=3, fp16=fp16)
