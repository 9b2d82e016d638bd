"""One list of settings: what the losses, both hosts and both pages say of them is the same."""

import dataclasses
import inspect
import math
import re

import pytest
import torch

from mbj_plugin import FeatureMemoryLoss, PrototypeMemoryLoss
from mbj_plugin.settings import PRESETS, RULES, MBJSettings, Memories, checked, read
from mbj_plugin.start import as_start, start_at

OTHERS = {
    "size": 7,
    "eta": 2.0,
    "beta": 0.5,
    "norm": "sum",
    "momentum": 0.5,
    "scale": 8.0,
    "margin": 0.1,
    "sample": 5,
    "seed": 9,
}


def test_every_setting_reaches_the_losses():
    memories = Memories(MBJSettings(memory="both", **OTHERS), [3, 2, 1], dim=4, start=11)
    for loss in memories.values():
        for name in inspect.signature(type(loss)).parameters.keys() & OTHERS.keys():
            value = loss.bank.size if name == "size" else getattr(loss, name, None)
            if not (name == "sample" and isinstance(loss, PrototypeMemoryLoss)):
                assert value == OTHERS[name], name
        assert loss.start == 11


def test_what_is_not_given_is_the_losses_own():
    memories = Memories(MBJSettings(memory="both"), [3, 2, 1], dim=4)
    for loss in memories.values():
        own = {name: p.default for name, p in inspect.signature(type(loss)).parameters.items()}
        assert (loss.bank.size, loss.eta) == (own["size"], own["eta"])


@pytest.mark.parametrize("kind", [FeatureMemoryLoss, PrototypeMemoryLoss])
def test_without_settings_code_gets_the_paper(kind):
    paper = dataclasses.asdict(MBJSettings.preset("classification", "paper"))
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    for name in defaults.keys() & RULES.keys() - {"size", "eta", "seed", "classifier_loss", "class_counts"}:
        assert defaults[name] == paper[name], name


def test_the_sum_of_the_losses():
    memories = Memories(MBJSettings(memory="both", norm="max", beta=0.0), [1, 1], dim=3)
    x, w, y = torch.randn(4, 3), torch.randn(2, 3), torch.tensor([0, 1, 0, -1])
    inputs = {"feature": lambda: (x, w, torch.zeros(2)), "prototype": lambda: (2 * x, w)}
    memories(y, inputs)
    alone = Memories(MBJSettings(memory="both", norm="max", beta=0.0), [1, 1], dim=3)
    alone.load_state_dict(memories.state_dict())
    expected = alone["feature"](x, y, w, torch.zeros(2)) + alone["prototype"](2 * x, y, w)
    assert torch.equal(memories(y, inputs), expected) and expected > 0


@pytest.mark.parametrize("task", PRESETS)
def test_presets_are_settings(task):
    assert set(PRESETS[task]) >= {"default", "paper"}
    for name in PRESETS[task]:
        MBJSettings.preset(task, name)
    eta, norm, start = (getattr(MBJSettings.preset("retrieval", "paper"), name) for name in ("eta", "norm", "start"))
    assert (eta, norm, start) == (1 / 7, "sum", 0)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        *[("eta", "1e-3", 0.001), ("size", "500", 500), ("size", 500.0, 500)],
        *[("start", "0.5", 0.5), ("start", "12.5", 12.5), ("start", "1", 1)],
        *[("seed", None, None), ("class_counts", "7", "7"), ("norm", "sum", "sum"), ("start", 3.0, 3)],
    ],
)
def test_read(name, given, value):
    result = read(name, given)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("eta", value) for value in (-1, 1e7, float("nan"), True, "much", None) if value is not None],
        *[("size", value) for value in (0, 2.5, 10**400)],
        *[("scale", 0), ("momentum", 1.0), ("seed", 2**63), ("beta", None)],
        *[("start", value) for value in (1.0, "1.0", -1, "soon", True, float("nan"), float("inf"), 10**400)],
    ],
)
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(ValueError, match=f"^--{name} must be .*, got "):
        checked(name, value, f"--{name}")


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0.5},
        {"memory": "prototype", "sample": 3},
        {"classifier_loss": "focal", "classifier": "shared"},
        {"classifier_loss": "focal", "memory": "prototype"},
    ],
)
def test_a_setting_of_a_memory_that_is_not_there(values):
    with pytest.raises(ValueError, match=r"it needs .*memory '"):
        MBJSettings(**values)


@pytest.mark.parametrize(
    ("start", "decay", "at"),
    [("auto", 120, 120), ("auto", None, 60), ("auto", 100, 60), (0.25, 7, 25), (0, 7, 0), (99, 7, 99), (12.5, 7, 12.5)],
)
def test_the_rule_of_the_start(start, decay, at):
    assert start_at(start, 200 if at == 120 else 100, decay, "epochs") == at


def test_the_latest_start():
    assert as_start(10**12) == 10**12 and as_start(10**12 + 1) is None


def test_a_start_past_the_end():
    with pytest.raises(ValueError, match="epoch 100, past the end of the run of 100 epochs"):
        start_at(100, 100, None, "epochs")


@pytest.mark.parametrize(
    ("name", "least", "most", "wanted"),
    [
        ("eta", 0.0, 1e6, "a number from 0 to 1e+06"),
        ("beta", 0.0, 100.0, "a number from 0 to 100"),
        ("margin", 0.0, 1e6, "a number from 0 to 1e+06"),
        ("scale", 5e-324, 1e6, "a number above 0 to 1e+06"),
        ("momentum", 0.0, 1 - 2**-53, "a number from 0 to below 1"),
        ("size", 1, 10**7, "a whole number from 1 to 10000000"),
        ("sample", 0, 10**7, "a whole number from 0 to 10000000"),
        ("seed", 0, 2**63 - 1, "a whole number from 0 to 9223372036854775807"),
    ],
)
def test_the_ends_of_a_range_belong_to_it_and_no_more(name, least, most, wanted):
    assert (checked(name, least), checked(name, most), RULES[name].wanted) == (least, most, wanted)
    whole = isinstance(most, int)
    for beyond in (least - 1, most + 1) if whole else (math.nextafter(least, -1), math.nextafter(most, math.inf)):
        with pytest.raises(ValueError, match=re.escape(f"{name} must be {wanted}, got {beyond!r}")):
            checked(name, beyond)


def test_presets():
    assert PRESETS == {
        "classification": {
            "default": {},
            "balanced": {"classifier_loss": "balanced_softmax", "eta": 1.0},
            "paper": {"norm": "sum", "start": 0},
        },
        "retrieval": {
            "default": {"memory": "prototype", "eta": 3.0, "size": 3500},
            "paper": {"memory": "prototype", "eta": 1 / 7, "size": 3500, "norm": "sum", "start": 0},
        },
    }
    one = MBJSettings()
    assert (one.eta, one.size) == (15.0, 500)
    assert (MBJSettings(memory="prototype").eta, MBJSettings(memory="prototype").size) == (1 / 7, 3500)
    assert [MBJSettings(memory="both").of(kind)["eta"] for kind in ("feature", "prototype")] == [15.0, 1 / 7]
    both = MBJSettings(memory="both", size=7.0)
    assert [both.of(kind)["size"] for kind in both.kinds] == [7, 7] and both.norm == "max"
    assert both.kinds == ("feature", "prototype") and type(both.size) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        both.size = 8
