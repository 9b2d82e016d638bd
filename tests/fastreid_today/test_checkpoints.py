"""Checkpoints of any age load, by one function; what is none, or another model's, is one clear line."""

import numpy as np
import pytest
import torch
from fastreid.utils.checkpoint import Checkpointer
from torch import nn

from fastreid_today import checkpoints


class Runs:
    """What a pickle could do."""

    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.float32(0.5), np.int64(3), np.arange(3.0), np.array(["a"])], ids=repr
)
def test_numpys_numbers_load_and_text_of_its_own_does_not(tmp_path, value):
    """What tools/plain_train_net.py stores."""
    torch.save({"model": {"weight": torch.ones(1)}, "metric": value}, tmp_path / "a.pth")
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        with pytest.raises(ValueError, match="a.pth"):
            checkpoints.load_checkpoint(tmp_path / "a.pth")
        return
    loaded = checkpoints.load_checkpoint(tmp_path / "a.pth")["metric"]
    assert type(loaded) is type(value) and np.array_equal(loaded, value)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_of_either_numpy(tmp_path, core):
    names = [f"{function.__module__}.{function.__name__}" for function in checkpoints.NUMPY[:4]]
    assert {f"numpy.{core}.multiarray.scalar", f"numpy.{core}.multiarray._reconstruct"} <= set(names)


def test_nothing_runs_and_nothing_stays_allowed(tmp_path, capsys):
    torch.save({"model": {}, "metric": Runs()}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match=r"a\.pth .*print"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")
    assert capsys.readouterr().out == "" and set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("wrap", [dict, lambda w: {"state_dict": w}, lambda w: {"model": w, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_however_they_are_wrapped(tmp_path, wrap, prefix):
    saved, model = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(wrap({prefix + name: value for name, value in saved.state_dict().items()}), tmp_path / "a.pth")
    rest = Checkpointer(model).load(str(tmp_path / "a.pth"))
    assert torch.equal(model.weight, saved.weight) and rest.get("epoch") in (3, None)


@pytest.mark.parametrize("held", [{}, {"epoch": 3}, {"state_dict": {"a": 1}}, [torch.ones(1)], b"text", b""], ids=repr)
def test_what_is_no_checkpoint(tmp_path, held):
    path = tmp_path / "a.pth"
    path.write_bytes(held) if isinstance(held, bytes) else torch.save(held, path)
    with pytest.raises(ValueError, match=r"a\.pth") as raised:
        checkpoints.load_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_a_file_cut_short_and_one_that_is_not_there(tmp_path):
    torch.save({"model": nn.Linear(9, 9).state_dict()}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    for length in (len(whole) - 300, len(whole) // 2, 20):
        (tmp_path / "b.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"b\.pth .* cut short"):
            checkpoints.load_checkpoint(tmp_path / "b.pth")
    with pytest.raises(FileNotFoundError):
        checkpoints.load_checkpoint(tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth.*MODEL.WEIGHTS"):
        Checkpointer(nn.Linear(9, 9)).load(str(tmp_path / "c.pth"))


def test_how_many_parameters_fit(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(checkpoints.logger, "warning", said.append)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    state = model.state_dict()
    for kept, warned in ((state, False), (["0.weight", "0.bias", "1.weight"], False), (["0.weight", "2.weight"], True)):
        torch.save({name: state[name] for name in kept}, tmp_path / "a.pth")
        Checkpointer(model).load(str(tmp_path / "a.pth"))
        assert bool(said) == warned
    assert "2 of the model's 6" in said[0]
    other = {"1.weight": torch.ones(3, 4), "2.running_mean": torch.ones(3), "head": torch.ones(1)}
    torch.save(other, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="none of the model's 6"):
        Checkpointer(model).load(str(tmp_path / "a.pth"))
