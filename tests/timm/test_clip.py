"""Clipping with two classifiers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_own_classifier import ALL, COUNTS, images, small_model
from timm import utils
from timm.utils import cuda as timm_cuda

from mbj_plugin.timm import clip
from tests.make_mbj_loss import mbj_loss


@pytest.mark.parametrize(("mode", "bound"), [("norm", 0.05), ("norm", 100.0), ("value", 0.05), ("agc", 0.05)])
def test_clipping_is_that_of_a_run_without_mbj(mode, bound):
    """Features and batch classifier as without MBJ; the memory classifier as if it were the only one."""
    model, stock = small_model(), small_model()
    stock.load_state_dict(model.state_dict())
    loss = mbj_loss(COUNTS, eta=30.0, **ALL).bind(model)
    x, y = images(0)
    loss(model(x), y)
    loss(model(x), y).backward()
    F.cross_entropy(stock(x), y).backward()
    alone = copy.deepcopy(stock)  # with the memory classifier in place of its own
    for own, (memory, _) in zip(alone.fc.parameters(), loss.heads.parameter_pairs, strict=True):
        own.grad = memory.grad.clone()
    for own, other in zip(alone.parameters(), stock.parameters(), strict=True):
        own.grad = other.grad.clone() if own.grad is None else own.grad
    clipped = loss.clip_parameters(model, exclude_head=mode == "agc")
    clip.dispatch_clip_grad(clipped, bound, mode)
    for each in (stock, alone):
        parameters = list(each.parameters())
        clip._STOCK(parameters[:-2] if mode == "agc" else parameters, bound, mode)
    ours = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in stock.named_parameters():
        assert torch.equal(ours[name.replace("fc.", "fc.batch_classifier.")], parameter.grad), name
    for name, parameter in alone.fc.named_parameters():
        assert torch.equal(ours[f"fc.{name}"], parameter.grad), name


def test_clipping_leaves_the_least_gradients_as_they_are():
    model = small_model()
    loss = mbj_loss(COUNTS).bind(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-12)
    clip.dispatch_clip_grad(loss.clip_parameters(model), 1.0)
    assert all((parameter.grad == 1e-12).all() for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_other_parameters_are_clipped_as_by_timm(mode):
    ours, stock = [torch.ones(3, requires_grad=True)], [torch.ones(3, requires_grad=True)]
    for parameters, dispatch in ((ours, clip.dispatch_clip_grad), (stock, clip._STOCK)):
        parameters[0].grad = torch.tensor([3.0, -4.0, 0.0])
        dispatch(parameters, 0.5, mode)
    assert torch.equal(ours[0].grad, stock[0].grad) and stock[0].grad.abs().max() < 3


def test_timm_s_trainer_and_scaler_call_it(monkeypatch):
    for place in (utils, timm_cuda):
        monkeypatch.setattr(place, "dispatch_clip_grad", clip._STOCK)
    clip.install()
    assert utils.dispatch_clip_grad is timm_cuda.dispatch_clip_grad is clip.dispatch_clip_grad
