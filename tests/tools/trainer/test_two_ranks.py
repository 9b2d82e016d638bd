"""Two gloo ranks against one process that sees both halves of each batch: weights, memory, metrics, images counted.

One pair of processes trains every case, since starting it takes longer than all of them. The network has no batch
norm, so that two halves are the whole batch; what batch norm does is a case of its own.
"""

import contextlib
import csv
import json
import multiprocessing
import os
import socket
from argparse import Namespace

import numpy as np
import plain_loop
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from plain_loop import EPOCHS, LR, MEAN, MOMENTUM, STD, normalised, read_images

from mbj_plugin.timm import MBJTask
from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args
from tests.make_mbj_loss import mbj_loss

BATCH = 4  # of each rank
TRAIN, VALIDATION = (15, 8, 4), (7, 6, 4)  # 27 and 17: the second rank sees one image of each set twice
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
FLAGS = [
    *("--model", "vit_tiny_patch16_224", "--model-kwargs", *[f"{key}={value}" for key, value in VIT.items()]),
    *("--input-size", "3", "16", "16", "--mean", *[str(MEAN)] * 3, "--std", *[str(STD)] * 3, "--crop-pct", "1"),
    *("--smoothing", "0", "-b", str(BATCH), "-j", "0", "--epochs", str(EPOCHS), "--sched", "none"),
    *("--opt", "momentum", "--momentum", str(MOMENTUM), "--weight-decay", "0", "--lr", str(LR), "--no-progress"),
]
MEMORY = {"memory": "both", "eta": 0.5, "beta": 1.0, "norm": "max", "size": 12}
SHARED = {**MEMORY, "classifier": "shared"}


def memory_flags(settings):
    return ["--mbj", "--mbj-start", "0", *[f"--mbj-{key}={value}" for key, value in settings.items()]]


MBJ = memory_flags(MEMORY)
# Flags, batches in an update, settings of the memories.
CASES = {
    "plain": ([], 1, None),
    "accumulated": (["--grad-accum-steps", "2"], 2, None),
    "memories": (MBJ, 1, MEMORY),
    "memories-accumulated": ([*MBJ, "--grad-accum-steps", "2"], 2, MEMORY),
    "memories-shared": (memory_flags(SHARED), 1, SHARED),
}
RESNET = ["--model", "resnet32_cifar", "--model-kwargs", "depth=8", "width=4"]
RUNS = {name: flags for name, (flags, _, _) in CASES.items()} | {
    "batch-norm": RESNET,
}
RUNS = {name: ["--no-aug", *flags] for name, flags in RUNS.items()}
# Each rank draws by torch's, NumPy's and Python's generators.
DRAWN = [*MBJ, "--aa", "rand-m9-mstd0.5", "--mixup", "0.5", "--drop", "0.5"]
RUNS |= {"drawn": DRAWN, "half": [*DRAWN, "--epochs", str(EPOCHS // 2)]}
RUNS |= {"resumed": [*DRAWN, "--resume", "half/last.pth.tar"]}
RESUMED = {"resumed": "half"}  # which goes on in its own folder


def draw(root):
    rng = np.random.default_rng(0)
    for split, counts in (("train", TRAIN), ("validation", VALIDATION)):
        for label, count in enumerate(counts):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(60 + 60 * label, 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def flat(task_state):
    """The memories, and the batch classifier where there is one."""
    return {f"{part}.{key}": value for part, tensors in task_state.items() for key, value in tensors.items()}


def one_rank(rank, ports, folder, output):
    """Trains every run as one of two ranks, and saves what it holds in the end."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    make_run, made = trainer.make_run, []
    trainer.make_run = lambda args: made.append(make_run(args)) or made[-1]
    joined = {}
    for name, flags in RUNS.items():
        args = parse_args(
            [str(folder), *FLAGS, *flags, "--output", str(output), "--experiment", RESUMED.get(name, name)]
        )
        args.resume = args.resume and str(output / args.resume)
        args = Namespace(**vars(args) | joined)
        results = trainer.train(args)
        joined = {key: getattr(args, key) for key in ("device", "world_size", "rank", "local_rank", "distributed")}
        run = made[-1]
        metrics = trainer.validate(run.task.get_eval_model(), run.data.evaluation, 3, run.device, run.amp_autocast)
        state = run.task.get_checkpoint_state()
        torch.save(
            {
                "weights": {key: value.clone() for key, value in state["state_dict"].items()},
                "memories": flat(state.get("task_state", {})),
                "wrong": np.array(results["per_class_error"]) / 100,
                "images": next(iter(metrics.values()))["images"],
            },
            output / f"{name}-{rank}.pt",
        )
    torch.distributed.destroy_process_group()
    os.environ["MASTER_PORT"] = str(ports[1])  # the whole command, as under torchrun
    flags = [*FLAGS, "--no-aug", "--mbj", "--mbj-start", "0", "--output", str(output), "--experiment", "own"]
    with open(output / f"table-{rank}", "w") as file, contextlib.redirect_stdout(file):
        trainer.main([str(folder), *flags])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("uneven")
    draw(root)
    return root


@pytest.fixture(scope="module")
def output(tmp_path_factory, folder):
    """Folder of what both ranks saved of every run."""
    path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0)), other.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (one, other)]
    # Forked from one process that has imported everything, which saves half of the start.
    multiprocessing.set_forkserver_preload(["mbj_plugin.tools.trainer.train"])
    torch.multiprocessing.start_processes(one_rank, (ports, folder, path), nprocs=2, start_method="forkserver")
    return path


def ranks(output, name):
    return [torch.load(output / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)]


def halves(folder, epoch):
    """Per batch, the images and labels of each rank: torch's DistributedSampler written out."""
    images, labels = read_images(folder / "train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).tolist()
    order += order[: len(order) % 2]
    for i in range(len(order) // 2 // BATCH):
        mine = [order[rank::2][i * BATCH : (i + 1) * BATCH] for rank in range(2)]
        yield [(normalised(images[places]), labels[places]) for places in mine]


def one_process(folder, accumulate, settings):
    """Weights, memories and mean loss of the last epoch of one process on the concatenated batches."""
    model = plain_loop.new_model("vit_tiny_patch16_224", **VIT)
    task = MBJTask(model, mbj_loss(TRAIN, seed=42, **settings), verbose=False) if settings else None
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for epoch in range(EPOCHS):
        model.train()
        batches, losses = list(halves(folder, epoch)), []
        for first in range(0, len(batches), accumulate):
            window = batches[first : first + accumulate]
            optimizer.zero_grad()
            for parts in window:
                images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
                if task:
                    parts = task(images, labels)
                    loss, logged = parts["loss"], parts["loss_batch"]
                else:
                    loss = logged = F.cross_entropy(model(images), labels)
                losses.append(logged.item())
                (loss / len(window)).backward()
            optimizer.step()
    return model, flat(task.get_task_state()) if task else {}, sum(losses) / len(losses)


def errors(model, folder):
    """Mean loss over the evaluation set, each image once, and the share of each class that is wrong."""
    images, labels = read_images(folder / "validation")
    model.eval()
    with torch.no_grad():
        logits = model(normalised(images))
    wrong = torch.bincount(labels[logits.argmax(1) != labels], minlength=3) / torch.tensor(VALIDATION)
    return F.cross_entropy(logits, labels).item(), wrong.numpy()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process_on_the_whole_batch(output, folder, case):
    _, accumulate, settings = CASES[case]
    model, memories, loss = one_process(folder, accumulate, settings)
    eval_loss, wrong = errors(model, folder)
    for found in ranks(output, case):
        assert_same(found["weights"], model.state_dict())
        assert_same(found["memories"], memories)
        np.testing.assert_allclose(found["wrong"], wrong, atol=1e-6)
        assert found["images"] == list(VALIDATION)
    with open(output / case / "summary.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["train_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(row["eval_loss"]) == pytest.approx(eval_loss, rel=1e-5)
    assert float(row["eval_top1"]) == pytest.approx(100 - 100 * np.dot(wrong, VALIDATION) / sum(VALIDATION), rel=1e-5)
    assert json.loads((output / case / "results.json").read_text())["class_counts"] == list(TRAIN)


def test_the_memories_hold_something(output):
    memories = ranks(output, "memories")[0]["memories"]
    for kind in ("feature", "prototype"):
        assert (memories[f"mbj.{kind}.bank.slot_labels"] >= 0).sum() == MEMORY["size"]


def test_resumed_on_two_ranks_it_is_the_run_that_was_never_stopped(output):
    for whole, resumed in zip(ranks(output, "drawn"), ranks(output, "resumed"), strict=True):
        for key in ("weights", "memories"):
            assert whole[key].keys() == resumed[key].keys()
            assert all(torch.equal(value, resumed[key][name]) for name, value in whole[key].items())
    states = torch.load(output / "half/last.pth.tar", weights_only=False)["rng_states"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    assert states[0]["python"] != states[1]["python"] and states[0]["numpy"][1:] != states[1]["numpy"][1:]


def test_the_first_line_of_two_ranks_is_their_run_without_mbj(output):
    plain, own = (json.loads((output / name / "results.json").read_text()) for name in ("plain", "own"))
    assert plain["classifiers"].items() <= own["classifiers"].items() and len(own["classifiers"]) == 3
    assert [(output / f"table-{rank}").read_text().count("error, %") for rank in range(2)] == [1, 0]


def test_batch_norm_of_two_ranks(output, folder):
    """DistributedDataParallel by hand: two replicas, the mean of their gradients, the first one's statistics before
    each step, the mean of both before evaluation."""
    first, second = plain_loop.new_model(), plain_loop.new_model()
    optimizer = torch.optim.SGD(first.parameters(), lr=LR, momentum=MOMENTUM)
    for epoch in range(EPOCHS):
        for parts in halves(folder, epoch):
            second.load_state_dict(first.state_dict())
            optimizer.zero_grad(), second.zero_grad()
            for model, (images, labels) in zip((first, second), parts, strict=True):
                F.cross_entropy(model.train()(images), labels).backward()
            for mine, other in zip(first.parameters(), second.parameters(), strict=True):
                mine.grad = (mine.grad + other.grad) / 2
            optimizer.step()
        for name, value in first.named_buffers():
            if value.is_floating_point():
                value.copy_((value + second.get_buffer(name)) / 2)
    eval_loss, wrong = errors(first, folder)
    for found in ranks(output, "batch-norm"):
        assert_same(found["weights"], first.state_dict())
        np.testing.assert_allclose(found["wrong"], wrong, atol=1e-6)
    with open(output / "batch-norm/summary.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["eval_loss"]) == pytest.approx(eval_loss, rel=1e-4)
