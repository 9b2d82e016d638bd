import inspect

import pytest
import timm
import timm.task
import torch

from mbj_plugin.timm import MBJTask, task
from tests.make_mbj_loss import mbj_loss

BANK = [
    "bank.calls",
    "bank.cursor",
    "bank.slot_calls",
    "bank.slot_labels",
    "bank.slot_rows",
    "class_counts",
    "seed",
    "step",
]


def make_task(memory="feature", **kwargs):
    model = timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3)
    return MBJTask(model, mbj_loss([9, 5, 2], memory=memory, norm="max", **kwargs), verbose=False)


def run(task, steps):
    g = torch.Generator().manual_seed(steps.start)
    for _ in steps:
        result = task(torch.randn(4, 3, 16, 16, generator=g), torch.randint(0, 3, (4,), generator=g))
    return result


def test_result_and_task_state():
    task = make_task("both")
    result = run(task, range(2))
    assert {"loss", "output", "loss_batch", "loss_memory"} <= result.keys()
    state = task.get_task_state()
    assert list(state) == ["mbj", "batch_classifier"]
    assert sorted(state["mbj"]) == sorted(f"{kind}.{key}" for kind in ("feature", "prototype") for key in BANK)
    assert task.get_task_state(ema=True) == {}  # there is none
    assert not any("memor" in key for key in task.get_checkpoint_state()["state_dict"])


def test_the_memory_survives_a_weights_only_checkpoint(tmp_path):
    first, second = make_task(), make_task()
    run(first, range(3))
    with torch.no_grad():  # as training does: the two classifiers are two
        first.criterion.heads.parameter_pairs[0][1].add_(1.0)
    torch.save(first.get_checkpoint_state(), tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    second.load_checkpoint_state(state["state_dict"], state["task_state"])
    for part in ("mbj", "batch_classifier"):
        for key, value in first.get_task_state()[part].items():
            assert torch.equal(value, second.get_task_state()[part][key])
    assert torch.equal(run(first, range(5, 6))["loss"], run(second, range(5, 6))["loss"])


def test_a_state_that_was_taken_stays_as_it_was():
    task = make_task()
    state = task.get_task_state()
    run(task, range(1))
    with torch.no_grad():
        task.criterion.heads.parameter_pairs[0][1].zero_()
    assert state["mbj"]["feature.bank.calls"] == 0 and (state["mbj"]["feature.bank.slot_labels"] < 0).all()
    assert state["batch_classifier"]["0.weight"].any()
    assert task.criterion.memories["feature"].bank.calls == 1


def test_a_checkpoint_of_another_kind_of_classifier_is_refused():
    own, shared, prototype = (make_task(**kw) for kw in ({}, {"classifier": "shared"}, {"memory": "prototype"}))
    assert list(shared.get_task_state()) == list(prototype.get_task_state()) == ["mbj"]
    for one, other, had in ((own, shared, "shared"), (shared, own, "own")):
        with pytest.raises(ValueError, match=f"had --mbj-classifier {had}"):
            one.load_task_state(other.get_task_state())


def test_device_ids_are_for_devices(monkeypatch):
    given = []
    monkeypatch.setattr(timm.task.ClassificationTask, "prepare_distributed", lambda self, **kw: given.append(kw))
    task = make_task()
    task.prepare_distributed(device_ids=[0], find_unused_parameters=True)
    task.device = torch.device("cuda")
    task.prepare_distributed(device_ids=[0])
    assert given == [{"device_ids": None, "find_unused_parameters": True}, {"device_ids": [0]}]


def test_what_is_clipped_is_what_a_run_without_mbj_clips():
    task = make_task()
    names = {id(parameter): name for name, parameter in task.trainable_module.named_parameters()}
    clipped = [names[id(parameter)] for parameter in task.get_clip_parameters()]
    assert clipped[-2:] == ["fc.batch_classifier.weight", "fc.batch_classifier.bias"]
    assert [names[id(parameter)] for parameter in task.get_clip_parameters(exclude_head=True)] == clipped[:-2]


@pytest.mark.parametrize("name", ["__init__", "get_clip_parameters", "get_task_state", "load_task_state"])
def test_what_may_be_left_out_is_what_timm_says(name):
    ours, stock = (
        inspect.signature(getattr(kind, name)).parameters for kind in (MBJTask, timm.task.ClassificationTask)
    )
    defaults = {each: p.default for each, p in ours.items() if p.default is not p.empty}
    assert defaults == {each: stock[each].default for each in defaults}


def test_an_older_timm_is_refused_before_a_run(monkeypatch):
    def older():
        raise RuntimeError("older")

    monkeypatch.setattr(task, "check_task_state", older)
    with pytest.raises(RuntimeError, match="older"):
        make_task()


def test_an_average_of_the_model_has_both_classifiers_and_no_memory():
    task, other = make_task(), make_task()
    for each in (task, other):
        each.setup_ema(decay=0.9)
    with torch.no_grad():
        task.criterion.heads.parameter_pairs[0][1].add_(1.0)
    before = task.trainable_module_ema.module.fc.batch_classifier.weight.clone()
    task.update_ema()
    average = task.trainable_module_ema.module.fc.batch_classifier.weight
    torch.testing.assert_close(average, before + 0.1)
    state = task.get_checkpoint_state(ema=True)
    assert list(state["task_state_ema"]) == ["batch_classifier"]
    assert not any("batch_classifier" in key for key in state["state_dict_ema"])
    other.load_checkpoint_state(state["state_dict_ema"], state["task_state_ema"], ema=True)
    assert torch.equal(other.trainable_module_ema.module.fc.batch_classifier.weight, average)
