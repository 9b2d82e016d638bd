"""The patches of compat.py that only a machine without CUDA needs."""

from __future__ import annotations

import functools
import inspect
import logging
import multiprocessing
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from fastreid_today.compat import expect, patch, rebind

logger = logging.getLogger("fastreid.mbj_plugin")
HAS_CUDA = "CUDA is available"


class PlainLoader(DataLoader):
    """fast-reid's ``DataLoaderX(local_rank, **arguments of DataLoader)`` without its CUDA stream and its thread."""

    def __init__(self, local_rank, pin_memory=False, **arguments):
        super().__init__(pin_memory=False, **arguments)


@patch("data/data_utils.py", "no CUDA: DataLoaderX makes CUDA streams")
def cpu_loader() -> str | None:
    """The plain DataLoader in its place."""
    if torch.cuda.is_available():
        return HAS_CUDA
    from fastreid.data import build, data_utils

    expect(build.DataLoaderX is data_utils.DataLoaderX, "cpu_loader", "data/build.py has another loader")
    rebind(data_utils.DataLoaderX, PlainLoader)
    return None


@patch(
    "modeling/meta_arch/build.py", "no CUDA: MODEL.DEVICE is `cuda` by default, and in configs dumped on a GPU machine"
)
def cpu_device() -> str | None:
    """Models whose MODEL.DEVICE is a CUDA device are built on the CPU, with a warning."""
    if torch.cuda.is_available():
        return HAS_CUDA
    from fastreid.modeling.meta_arch import build as meta_arch_build

    expect(hasattr(meta_arch_build, "build_model"), "cpu_device", "build_model is gone")
    build = meta_arch_build.build_model

    @functools.wraps(build)
    def build_on_cpu(cfg):
        if cfg.MODEL.DEVICE.startswith("cuda"):
            logger.warning("MODEL.DEVICE is %s, but there is no CUDA: the model runs on the CPU", cfg.MODEL.DEVICE)
            cfg.MODEL["DEVICE"] = "cpu"  # as an item, for the config may be frozen
        return build(cfg)

    rebind(build, build_on_cpu)
    return None


@patch(
    "engine/train_loop.py",
    "no CUDA: `[AMPTrainer] CUDA is required for AMP training!` (most of its configs ask for AMP)",
)
def cpu_amp() -> str | None:
    """AMPTrainer trains in fp32, as SimpleTrainer does, with a warning."""
    if torch.cuda.is_available():
        return HAS_CUDA
    from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer

    expect("run_step" in vars(AMPTrainer), "cpu_amp", "AMPTrainer.run_step is gone")

    def init(self, model, data_loader, optimizer, param_wrapper, grad_scaler=None):
        logger.warning("SOLVER.AMP.ENABLED is set, but there is no CUDA: training runs in fp32")
        SimpleTrainer.__init__(self, model, data_loader, optimizer, param_wrapper)
        self.grad_scaler = None

    AMPTrainer.__init__ = init
    AMPTrainer.run_step = lambda self: SimpleTrainer.run_step(self)
    return None


class HostDDP(DistributedDataParallel):
    """DistributedDataParallel, which refuses ``device_ids`` for modules on the CPU."""

    def __init__(self, module, device_ids=None, **arguments):
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
        super().__init__(module, device_ids=None if on_cpu else device_ids, **arguments)


@patch("engine/defaults.py", "no CUDA: DistributedDataParallel refuses device_ids for a model on the CPU")
def cpu_ddp() -> str | None:
    """The trainer's DistributedDataParallel drops them there."""
    if torch.cuda.is_available():
        return HAS_CUDA
    from fastreid.engine import defaults

    expect(defaults.DistributedDataParallel is DistributedDataParallel, "cpu_ddp", "the trainer wraps in another class")
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


@patch("engine/launch.py", "no CUDA: `--num-gpus 2` asserts CUDA and asks for NCCL")
def cpu_launch() -> str | None:
    """Ranks run on the CPU over gloo."""
    if torch.cuda.is_available():
        return HAS_CUDA
    import fastreid.engine  # noqa: F401  (its `launch` is the function, so the module comes from sys.modules)

    module = sys.modules["fastreid.engine.launch"]
    expect(hasattr(module, "_distributed_worker"), "cpu_launch", "_distributed_worker is gone")
    module._distributed_worker = gloo_worker  # type: ignore[attr-defined]
    return None


@patch("utils/compute_dist.py", "TEST.RERANK without CUDA or with faiss-cpu: `.cuda()`, StandardGpuResources")
def cpu_rerank() -> str | None:
    """Re-ranking searches with faiss on the CPU."""
    import faiss
    from fastreid.utils import compute_dist

    if torch.cuda.is_available() and hasattr(faiss, "StandardGpuResources"):
        return "CUDA and faiss-gpu are available"
    jaccard = compute_dist.compute_jaccard_distance
    expect("search_option" in inspect.signature(jaccard).parameters, "cpu_rerank", "search_option is gone")

    @functools.wraps(jaccard)
    def on_cpu(features, k1=20, k2=6, search_option=0, fp16=False):
        return jaccard(features.cpu(), k1=k1, k2=k2, search_option=3, fp16=fp16)

    compute_dist.compute_jaccard_distance = on_cpu
    return None
