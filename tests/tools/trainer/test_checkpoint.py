"""What a checkpoint holds beside timm's, and what is said of a file that is none."""

import random
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.rivals import create_loss
from mbj_plugin.timm import MBJLoss
from mbj_plugin.tools.trainer import checkpoint
from mbj_plugin.tools.trainer.checkpoint import (
    ResumableMBJTask,
    ResumableTask,
    read_checkpoint,
    set_rng_state,
)


def draws():
    """A number of each generator; the second normal of a pair waits in numpy's and in Python's."""
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), np.random.randn(), random.random(), random.gauss(0, 1)


@pytest.mark.parametrize("position", [0, 1, 700])
def test_every_generator_goes_on_where_it_was(tmp_path, position):
    task = ResumableTask(nn.Linear(2, 3), nn.CrossEntropyLoss(), verbose=False)
    for _ in range(position):
        draws()
    task.remember_rng()
    torch.save(task.get_checkpoint_state(), tmp_path / "a.pth.tar")
    expected = [draws(), draws()]
    saved = torch.load(tmp_path / "a.pth.tar", weights_only=True)["rng_states"]  # plain types only
    assert len(saved) == 1 and saved[0]["cuda"] is None
    for _ in range(3):
        draws()
    set_rng_state(saved[0])
    assert [draws(), draws()] == expected


def test_the_gpu_s_generator_too(monkeypatch):
    restored = []
    for name, function in {
        "is_available": lambda: True,
        "get_rng_state": lambda: torch.tensor([7], dtype=torch.uint8),
        "set_rng_state": restored.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    state = checkpoint._rng_state()
    set_rng_state(state)
    assert [each.tolist() for each in restored] == [[7]]
    set_rng_state({**state, "cuda": None})  # of a run on a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_rng_state(state)  # on a machine without one
    assert len(restored) == 1


def small_task(mbj, batch_loss):
    model = nn.Sequential(nn.Linear(2, 3))
    model.get_classifier = lambda: model[0]
    if not mbj:
        return ResumableTask(model, batch_loss, verbose=False)
    return ResumableMBJTask(model, MBJLoss([3, 2, 1], base=batch_loss), verbose=False)


@pytest.mark.parametrize("mbj", [False, True])
def test_what_a_checkpoint_holds(mbj):
    task = small_task(mbj, create_loss("ldam_drw", [3, 2, 1], start=5))
    task.setup_ema(decay=0.5)
    timms = {"state_dict", *(["task_state"] if mbj else [])}
    assert set(task.get_checkpoint_state()) - timms == {"batch_loss"}
    task.remember_rng()
    task.run_state = lambda: {"start": {"epoch": 3}, "data": {"images": 6}}
    state = task.get_checkpoint_state()
    assert set(state) - timms == {"batch_loss", "start", "data", "rng_states"}
    assert state["batch_loss"]["step"] == 0
    assert state["start"] == {"epoch": 3} and state["data"] == {"images": 6}
    assert state["rng_states"] is task.rng_states
    assert not {"batch_loss", "start", "rng_states"} & set(task.get_checkpoint_state(ema=True))


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "a.pth.tar"
    with pytest.raises(ValueError, match=f"no checkpoint at {path}: --resume"):
        read_checkpoint(str(path))
    path.write_text("x" * 300)
    with pytest.raises(ValueError, match=f"cannot read the checkpoint {path}") as error:
        read_checkpoint(str(path))
    assert "\n" not in str(error.value)
    of_mbj = {"state_dict": {}, "args": Namespace(mbj=True)}
    for content in ([1, 2], {"state_dict": [1]}, {"weights": {}}, of_mbj, of_mbj | {"task_state": [1]}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"{path} is no training checkpoint"):
            read_checkpoint(str(path))
    torch.save({"state_dict": {}, "epoch": 4}, path)
    assert read_checkpoint(str(path))["epoch"] == 4
