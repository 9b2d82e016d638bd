"""Which checkpoints fit which memories, and who goes on with one."""

import pytest
import torch
from fastreid.utils.checkpoint import Checkpointer
from test_fastreid_head_values import Model, batch, make_head

from mbj_plugin.fastreid import checkpoint
from mbj_plugin.fastreid.checkpoint import memory_mismatch


def trained(**mbj):
    model = Model(make_head(**mbj))
    model.heads[0].collecting = True
    for step in range(3):
        model(*batch(step))
    return model


def memory_of(model):
    return {name: value.clone() for name, value in model.state_dict().items() if ".memories." in name}


def mismatch(model, other):
    return memory_mismatch(other.state_dict(), model.state_dict())


def test_memories_that_fit_and_that_do_not():
    model = trained()
    assert mismatch(model, trained()) == ""
    rows = next(name for name in memory_of(model) if memory_of(model)[name].shape[:1] == (12,))
    shapes = [tuple(each.state_dict()[rows].shape) for each in (trained(SIZE=5), model)]
    said = f"{rows} has shape {shapes[0]} in the checkpoint and {shapes[1]} in the model"
    assert mismatch(model, trained(SIZE=5)) == said
    name, only = "heads.0.memories.feature.bank.calls", trained(MEMORY="prototype")
    assert mismatch(model, only) == f"{name} is only in the model: MEMORY or MOMENTUM has changed"
    assert mismatch(only, model) == f"{name} is only in the checkpoint: MEMORY or MOMENTUM has changed"


def test_with_another_classifier_labels_mean_others():
    model = trained(MEMORY="feature")
    saved = model.state_dict() | {"heads.0.weight": torch.zeros(7, 3)}
    said = "heads.0.weight has shape (7, 3) in the checkpoint and (5, 3) in the model"
    assert memory_mismatch(saved, model.state_dict()) == said


class Counter:
    """Something besides the model that goes into a checkpoint."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def saved(tmp_path):
    """Folder of a run's checkpoint, and its memory."""
    model = trained()
    Checkpointer(model, str(tmp_path), counter=Counter(3)).save("last", epoch=6)
    return tmp_path, memory_of(model)


def is_empty(model):
    return all(head.memories[kind].bank.filled == 0 for head in model.heads for kind in head.memories)


def same_memory(model, memory):
    return all(torch.equal(value, memory[name]) for name, value in memory_of(model).items())


def test_a_run_that_goes_on_has_its_memory(saved):
    folder, memory = saved
    model, counter = Model(make_head()), Counter()
    checkpointer = Checkpointer(model, str(folder), counter=counter)
    assert checkpointer.resume_or_load(path="", resume=True)["epoch"] == 6
    assert same_memory(model, memory) and counter.value == 3
    with pytest.raises(ValueError, match="^cannot resume: heads.0.memories.* has shape .* Set MODEL.MBJ .SIZE, MEMORY"):
        Checkpointer(Model(make_head(SIZE=5)), str(folder), counter=counter).resume_or_load("", resume=True)


@pytest.mark.parametrize("change", [{}, {"SIZE": 5}, {"MEMORY": "feature"}, {"MOMENTUM": 0.0}, {"ETA": 0}], ids=str)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_run_that_begins_from_weights_has_its_own_memory(saved, monkeypatch, prefix, change):
    folder, _ = saved
    lines, model, counter = [], Model(make_head(**change)), Counter()
    held = torch.load(folder / "last.pth")
    torch.save({**held, "model": {prefix + name: value for name, value in held["model"].items()}}, folder / "last.pth")
    mine = memory_of(model)
    monkeypatch.setattr(checkpoint.logger, "info", lines.append)
    Checkpointer(model, str(folder), counter=counter).resume_or_load(str(folder / "last.pth"), resume=False)
    assert same_memory(model, mine) and is_empty(model) and counter.value == 0
    assert torch.equal(model.heads[0].weight, held["model"]["heads.0.weight"])
    assert len(lines) == ("ETA" not in change)
    # Where nothing is to be resumed, fast-reid loads the weights, whatever is asked for.
    (folder / "last_checkpoint").unlink()
    Checkpointer(model, str(folder), counter=counter).resume_or_load(str(folder / "last.pth"), resume=True)
    assert same_memory(model, mine)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("has_more", "wanted", "goes_on"),
    [(True, None, True), (True, [], False), (True, ["counter"], True), (False, None, False), (False, [], False)],
)
def test_who_loads_more_than_the_model_goes_on(saved, monkeypatch, prefix, has_more, wanted, goes_on):
    folder, memory = saved
    lines, missing, model, held = [], [], Model(make_head()), torch.load(folder / "last.pth")
    torch.save({**held, "model": {prefix + name: value for name, value in held["model"].items()}}, folder / "last.pth")
    monkeypatch.setattr(checkpoint.logger, "info", lines.append)
    monkeypatch.setattr(Checkpointer, "_log_incompatible_keys", lambda self, found: missing.extend(found.missing_keys))
    Checkpointer(model, **({"counter": Counter()} if has_more else {})).load(str(folder / "last.pth"), wanted)
    assert same_memory(model, memory) if goes_on else is_empty(model)
    # Who evaluates has nothing besides the model, and hears nothing.
    assert len(lines) == (has_more and not goes_on) and not [name for name in missing if ".memories." in name]
