"""fast-reid runs on today's stack, because of each change, and each change only where it is needed."""

import collections
import functools
import importlib
import inspect
import sys

import fastreid.solver
import numpy as np
import pytest
import torch
from fastreid.data.transforms import build_transforms
from fastreid.evaluation.rank import evaluate_rank
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build as solver_build
from fastreid.solver.optim import swa
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.params import ContiguousParams
from PIL import Image

import fastreid_today
from fastreid_today import changes


def test_every_change_ran_and_says_why():
    assert set(changes.STATUS) == set(changes.CHANGES)
    for name, status in changes.STATUS.items():
        entry = changes.CHANGES[name]
        assert (status == "on" or status.startswith("off: ")) and entry.what_for and entry.text, name


def test_a_second_call_changes_nothing():
    before = solver_build.build_optimizer, ContiguousParams.buffer_is_valid, dict(changes.STATUS)
    fastreid_today.repair()
    assert before == (solver_build.build_optimizer, ContiguousParams.buffer_is_valid, changes.STATUS)


@pytest.mark.parametrize("target", ["engine.hooks:SWA.after_stop", "engine.hooks:Swa.after_step"])
def test_loud_where_upstream_has_changed(monkeypatch, target):
    monkeypatch.setattr(changes, "CHANGES", {})
    monkeypatch.setattr(changes, "STATUS", {})
    changes.replaces(target, "what was seen")(lambda stock: None)
    with pytest.raises(changes.UpstreamChangedError, match=r"engine/hooks\.py.*what was seen"):
        changes.apply_all()
    assert changes.STATUS["<lambda>"].startswith("failed: ")


def test_the_modules_order_holds_whichever_was_imported_first(monkeypatch):
    monkeypatch.setattr(changes, "CHANGES", {})
    monkeypatch.setattr(changes, "STATUS", {})
    made = []
    for module in ("user", "fastreid_today.cpu", "fastreid_today.training"):
        changes.CHANGES[module] = changes.Change(
            module, "", "", "", module, True, functools.partial(made.append, module)
        )
    changes.apply_all(["training", "cpu"])
    assert made == ["fastreid_today.training", "fastreid_today.cpu", "user"]


def test_what_is_wrapped_is_wrapped_wherever_it_was_imported():
    engine = importlib.import_module("fastreid.engine")
    assert engine.launch is sys.modules["fastreid.engine.launch"].launch is not inspect.unwrap(engine.launch)
    assert fastreid.solver.build_optimizer is solver_build.build_optimizer
    assert sys.modules["fastreid.engine.defaults"].build_optimizer is solver_build.build_optimizer


def test_the_alias_is_taken_away_again():
    assert not hasattr(collections, "Mapping")


def _train(trainer, steps):
    weights = [p.detach().clone() for p in trainer.model.parameters()]
    losses = [sum(loss.values()).item() for loss in steps(trainer, 100)]
    moved = [not torch.equal(old, new) for old, new in zip(weights, trainer.model.parameters(), strict=True)]
    return sum(moved) / len(moved), losses


def test_training_moves_weights_and_lowers_the_loss(make_trainer, steps):
    """The silent failure of fast-reid on torch >= 2.0."""
    moved, losses = _train(make_trainer("MODEL.MBJ.ETA", 0, "SOLVER.BASE_LR", 0.01), steps)
    assert moved > 0.9
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_without_the_patch_no_weight_moves(make_trainer, steps, monkeypatch):
    """So that the test above can fail: fast-reid as it is."""
    original = inspect.unwrap(solver_build.build_optimizer)
    assert original is not solver_build.build_optimizer
    monkeypatch.setattr("fastreid.engine.defaults.build_optimizer", original)
    monkeypatch.setattr(ContiguousParams, "buffer_is_valid", inspect.unwrap(ContiguousParams.buffer_is_valid))
    moved, _ = _train(make_trainer("MODEL.MBJ.ETA", 0, "SOLVER.BASE_LR", 0.01), steps)
    assert moved == 0


def test_cut_gradients_are_noticed(make_trainer, steps):
    trainer = make_trainer()
    trainer.optimizer.zero_grad = lambda: type(trainer.optimizer).zero_grad(trainer.optimizer, set_to_none=True)
    with pytest.raises(ValueError, match="invalidated"):
        steps(trainer, 1)


def test_swa_keeps_the_flat_gradients(make_cfg):
    model = torch.nn.Linear(3, 2)
    optimizer, params = fastreid.solver.build_optimizer(make_cfg(), model)
    model(torch.ones(1, 3)).sum().backward()
    swa.SWA(optimizer, 2, 1.0).zero_grad()
    assert params.buffer_is_valid() and not model.weight.grad.any()


def test_all_transforms_run(make_cfg):
    names = ["CROP", "FLIP", "PADDING", "CJ", "AFFINE", "AUTOAUG", "AUGMIX", "REA", "RPT"]
    cfg = make_cfg(*[value for name in names for value in (f"INPUT.{name}.ENABLED", True)], "INPUT.CROP.SIZE", [32, 16])
    cfg.INPUT.AUTOAUG.PROB = cfg.INPUT.AUGMIX.PROB = 1.0
    transform = build_transforms(cfg)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3), dtype=np.uint8))
    for _ in range(40):
        assert transform(image).shape == (3, 32, 16)


def test_the_cuhk03_metric_runs_without_cython():
    distances = np.random.default_rng(0).random((2, 6))
    people, cameras = np.array([1, 2, 1, 2, 1, 2]), np.array([1, 1, 2, 2, 3, 3])
    scores, _ = evaluate_rank(distances, people[:2], people, np.array([0, 0]), cameras, 3, True, use_cython=False)
    assert scores[-1] == 1


def test_projects_of_a_checkout_find_torch_six(monkeypatch):
    """Of the main branch fastreid.data imports without it, and FastFace does not."""
    monkeypatch.delitem(sys.modules, "torch._six")
    assert changes.CHANGES["torch_six"].apply() is None
    from torch._six import container_abcs, string_classes

    assert container_abcs is collections.abc and string_classes == (str, bytes)
    assert "has torch._six" in changes.CHANGES["torch_six"].apply()


def test_a_plain_loop_takes_the_optimizer_from_the_pair(make_cfg):
    """As tools/plain_train_net.py does."""
    cfg = make_cfg("MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.NUM_CLASSES", 24)
    model = build_model(cfg)
    optimizer = fastreid.solver.build_optimizer(cfg, model)
    schedule = fastreid.solver.build_lr_scheduler(cfg, optimizer, 9)
    before = model.heads.weight.detach().clone()
    model.heads.weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert not torch.equal(before, model.heads.weight) and optimizer.param_groups[0]["lr"] > 0
    assert model.heads.weight.grad is not None and not model.heads.weight.grad.any()
    Checkpointer(model, optimizer=optimizer, **schedule)
    alone, params = optimizer
    assert isinstance(alone, torch.optim.Optimizer) and isinstance(params, ContiguousParams)


@pytest.mark.parametrize(("shift", "warns"), [(0, False), (-1, True)])
def test_a_demo_of_the_checkout_finds_evaluate_rank(monkeypatch, shift, warns):
    """It is told of features that it has not normalised."""
    from fastreid.evaluation import evaluate_rank as named

    said = []
    monkeypatch.setattr("fastreid_today.checkout.logger.warning", lambda *message: said.append(message))
    people, cameras = np.array([1, 2] * 6), np.arange(12)
    search = (np.random.default_rng(0).random((2, 12)) + shift, people[:2], people, np.array([99, 99]), cameras)
    for mine, its in zip(named(*search), evaluate_rank(*search), strict=True):
        assert np.array_equal(mine, its)
    assert bool(said) == warns
