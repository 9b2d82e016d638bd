"""Which checkpoints fit which memories, and who goes on with one."""

import pytest
import torch
from fastreid.utils.checkpoint import Checkpointer
from test_fastreid_head_values import Model, batch, make_head
from torch import nn

from mbj_plugin.fastreid import checkpoint
from mbj_plugin.fastreid.checkpoint import keep_memories, memory_mismatch


def trained(**mbj):
    model = Model(make_head(**mbj))
    model.heads[0].collecting = True
    for step in range(3):
        model(*batch(step))
    return model


def memory_of(model):
    return {name: value.clone() for name, value in model.state_dict().items() if ".memories." in name}


def wrapped(model, prefix):
    return {prefix + name: value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_memories_that_fit_and_that_do_not(prefix):
    model = trained()
    assert memory_mismatch(model, wrapped(trained(), prefix)) == ""
    assert memory_mismatch(model, wrapped(trained(ETA=0), prefix)) == ""  # none was saved
    assert memory_mismatch(trained(ETA=0), wrapped(model, prefix)) == ""  # none is there
    said = memory_mismatch(model, wrapped(trained(SIZE=5), prefix))
    rows = next(name for name in memory_of(model) if memory_of(model)[name].shape[:1] == (12,))
    assert said == f"{rows} has shape {tuple(trained(SIZE=5).state_dict()[rows].shape)} in the checkpoint and " + (
        f"{tuple(model.state_dict()[rows].shape)} in the model"
    )
    name = "heads.0.memories.feature.bank.calls"
    only = wrapped(trained(MEMORY="prototype"), prefix)
    assert memory_mismatch(model, only) == f"{name} is only in the model: MEMORY or MOMENTUM has changed"
    said = memory_mismatch(trained(MEMORY="prototype"), wrapped(model, prefix))
    assert said == f"{name} is only in the checkpoint: MEMORY or MOMENTUM has changed"


def test_with_another_classifier_labels_mean_others():
    saved = trained(MEMORY="feature").state_dict()
    saved["heads.0.weight"] = torch.zeros(7, 3)
    said = "heads.0.weight has shape (7, 3) in the checkpoint and (5, 3) in the model"
    assert memory_mismatch(trained(MEMORY="feature"), saved) == said
    del saved["heads.0.weight"]
    assert memory_mismatch(trained(MEMORY="feature"), saved) == ""


@pytest.mark.parametrize("change", [{"SIZE": 5}, {"MEMORY": "feature"}, {"MOMENTUM": 0.0}], ids=str)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_model_s_memories_take_the_place_of_the_saved(prefix, change):
    model, other = trained(), Model(make_head(**change))
    saved, mine = wrapped(model, prefix), memory_of(other)
    assert keep_memories(other, saved)
    kept = {name.removeprefix(prefix): value for name, value in saved.items() if ".memories." in name}
    assert kept.keys() == mine.keys() and all(torch.equal(kept[name], mine[name]) for name in mine)
    assert torch.equal(saved[f"{prefix}heads.0.weight"], model.heads[0].weight)
    saved = wrapped(model, prefix)
    assert keep_memories(Model(make_head(ETA=0)), saved) and saved.keys() == wrapped(model, prefix).keys()
    saved = wrapped(Model(make_head(ETA=0)), prefix)
    assert not keep_memories(model, saved) and saved.keys() == wrapped(Model(make_head(ETA=0)), prefix).keys()


def test_names_that_only_look_like_memories():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.memories = nn.ModuleDict({"feature": nn.Linear(1, 1)})

    model = Model(make_head())
    model.other = Other()
    assert not any(name.startswith("other") for name in checkpoint._memory_keys(model))
    plain = Model(make_head(ETA=0))
    assert checkpoint._memory_keys(plain) == [] and checkpoint._weight_keys(plain) == []
    assert checkpoint._weight_keys(model) == ["heads.0.weight"]


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
    assert not hasattr(checkpointer, "resumes_mbj")
    with pytest.raises(ValueError, match="^cannot resume: heads.0.memories.* has shape .* Set MODEL.MBJ .SIZE, MEMORY"):
        Checkpointer(Model(make_head(SIZE=5)), str(folder)).resume_or_load("", resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_begins_from_weights_has_none(saved, tmp_path_factory, monkeypatch, resume):
    folder, _ = saved
    lines, model, counter = [], Model(make_head(SIZE=5)), Counter()
    monkeypatch.setattr(checkpoint.logger, "info", lines.append)
    # Where nothing is to be resumed, fast-reid loads the weights, whatever is asked for.
    place = tmp_path_factory.mktemp("new") if resume else folder
    checkpointer = Checkpointer(model, str(place), counter=counter)
    checkpointer.resume_or_load(str(folder / "last.pth"), resume=resume)
    assert is_empty(model) and counter.value == 0 and not hasattr(checkpointer, "resumes_mbj")
    assert model.heads[0].memories["feature"].step == 0
    assert lines == ["A new run: the memory of MODEL.WEIGHTS is left out, this one starts empty"]


@pytest.mark.parametrize(
    ("has_more", "wanted", "goes_on"),
    [(True, None, True), (True, [], False), (True, ["counter"], True), (False, None, False), (False, [], False)],
)
def test_who_loads_more_than_the_model_goes_on(saved, monkeypatch, has_more, wanted, goes_on):
    folder, memory = saved
    lines, model = [], Model(make_head())
    monkeypatch.setattr(checkpoint.logger, "info", lines.append)
    checkpointer = Checkpointer(model, **({"counter": Counter()} if has_more else {}))
    checkpointer.load(str(folder / "last.pth"), wanted)
    assert same_memory(model, memory) if goes_on else is_empty(model)
    assert not hasattr(checkpointer, "resumes_mbj")
    # Who evaluates has nothing besides the model, and hears nothing.
    assert len(lines) == (has_more and not goes_on)


@pytest.mark.parametrize(("has_more", "goes_on"), [(True, True), (False, False)])
def test_an_own_way_of_loading(saved, has_more, goes_on):
    """Who calls _load_model, as fast-reid's load does."""
    folder, memory = saved
    model = Model(make_head())
    checkpointer = Checkpointer(model, **({"counter": Counter()} if has_more else {}))
    checkpointer._load_model(torch.load(folder / "last.pth"))
    assert same_memory(model, memory) if goes_on else is_empty(model)


def test_a_failed_load_leaves_the_checkpointer_as_it_was(saved):
    folder, _ = saved
    checkpointer = Checkpointer(Model(make_head(SIZE=5)), str(folder), counter=Counter())
    for load in (lambda: checkpointer.resume_or_load(""), lambda: checkpointer.load(str(folder / "last.pth"))):
        with pytest.raises(ValueError, match="cannot resume"):
            load()
        assert not hasattr(checkpointer, "resumes_mbj")


def test_nobody_hears_of_a_memory_where_there_is_none(saved, monkeypatch):
    lines = []
    monkeypatch.setattr(checkpoint.logger, "info", lines.append)
    Checkpointer(Model(make_head(ETA=0)), counter=Counter()).load(str(saved[0] / "last.pth"), [])
    assert not lines
