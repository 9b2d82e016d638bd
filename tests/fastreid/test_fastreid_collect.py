"""The losses of a model's heads are collected, and what goes together is checked, by value."""

import pytest
import torch
from fastreid.engine import defaults as fastreid_engine
from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch import build as meta_arch_build
from fastreid.modeling.meta_arch import build_model
from test_fastreid_head_values import Model, batch, make_cfg, make_head
from torch import nn

from mbj_plugin.fastreid import collect
from mbj_plugin.fastreid.collect import collect_losses, mbj_heads


def two_heads(losses=None):
    model = Model(make_head(), make_head(SCALE=9.0), nn.Identity(), losses=losses)
    model.heads[2].forward = lambda features, targets: None
    collect_losses(model)
    return model.train()


def test_the_model_returns_the_mean_over_its_heads():
    model, alone = two_heads(), [make_head(), make_head(SCALE=9.0)]
    assert mbj_heads(model) == list(model.heads[:2])
    for step in range(4):
        losses = model(*batch(step))
        each = []
        for head in alone:
            head(*batch(step))
            each += head.pending
            head.pending = []
        assert list(losses) == ["loss_a", "loss_b", "loss_mbj"]
        assert losses["loss_mbj"].item() == pytest.approx((each[0].item() + each[1].item()) / 2)
        assert not any(head.pending or head.collecting for head in model.heads[:2])
    assert each[0] != each[1]


def test_collecting_twice_changes_nothing():
    model = two_heads()
    collect_losses(model)
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    plain = Model()
    collect_losses(plain)
    assert list(plain(*batch(0))) == ["loss_a", "loss_b"]


def test_without_memories_there_is_nothing_to_collect():
    assert mbj_heads(Model(make_head(ETA=0), build_heads(make_cfg("MODEL.HEADS.NAME", "EmbeddingHead")))) == []


def test_a_step_that_failed_leaves_its_loss_behind():
    model, again = two_heads(), two_heads()
    model.fails = True
    with pytest.raises(KeyError):
        model(*batch(0))
    model.fails = False
    again(*batch(0))
    assert torch.equal(model(*batch(1))["loss_mbj"], again(*batch(1))["loss_mbj"])


def test_what_a_model_returns_beside_no_loss_is_left_alone():
    for returned in ("features", torch.ones(2), {}):
        model = two_heads(returned)
        model.eval()
        assert model(batch(0)[0]) is returned


@pytest.mark.parametrize(
    ("returned", "error", "said"),
    [
        (torch.ones(2), TypeError, "^Model returns Tensor in training, not a dict of losses: the memory loss cannot"),
        ({}, ValueError, "^Model returns no batch loss, so the memory loss would train alone: name one in"),
    ],
)
def test_a_model_whose_losses_cannot_be_added_to(returned, error, said):
    with pytest.raises(error, match=said):
        two_heads(returned)(*batch(0))


def checked(head, names=("CrossEntropyLoss",), model=None, architecture="Baseline"):
    cfg = make_cfg("MODEL.HEADS.NAME", head, "MODEL.META_ARCHITECTURE", architecture)
    cfg.MODEL.LOSSES.NAME = names
    collect._check_losses(model or Model(build_heads(cfg)), cfg)


def test_losses_and_heads_that_go_together():
    for names in (("CrossEntropyLoss",), ("CrossEntropyLoss", "MBJLoss"), "CrossEntropyLoss", ("OwnLoss",), ()):
        checked("MBJHead", names)
    checked("EmbeddingHead")
    checked("EmbeddingHead", ())


@pytest.mark.parametrize("names", ["MBJLoss", ("MBJLoss",), ("MBJLoss", "MBJLoss")])
def test_losses_and_heads_that_do_not(names):
    with pytest.raises(ValueError, match=r"LOSSES.NAME has MBJLoss alone.*CrossEntropyLoss"):
        checked("MBJHead", names)
    with pytest.raises(ValueError, match="MBJLoss, but MODEL.HEADS.NAME is EmbeddingHead: set it to MBJHead$"):
        checked("EmbeddingHead", names)
    with pytest.raises(ValueError, match="MODEL.HEADS.NAME is MBJHead, but MODEL.META_ARCHITECTURE Baseline has other"):
        checked("MBJHead", model=Model())
    with pytest.raises(ValueError, match="PartialBaseline .*DSRHead"):
        checked("MBJHead", architecture="PartialBaseline")


@pytest.mark.parametrize("head", ["MBJHead", "EmbeddingHead"])
@pytest.mark.parametrize(
    ("architecture", "names", "said"),
    [
        ("Baseline", ("CrossEntropyLos",), "'CrossEntropyLos', which Baseline does not know.* CrossEntropyLoss, "),
        ("Baseline", ("CrossEntropyLoss", "tripletloss", "MBJLoss"), "'tripletloss'"),
        ("MoCo", ("Tripletloss",), "'Tripletloss', which MoCo does not know"),
        ("MGN", ("CrossEntropyLoss", "Cosface"), "'Cosface', which MGN does not know.* CrossEntropyLoss, TripletLoss$"),
    ],
)
def test_a_misspelt_loss(head, names, architecture, said):
    resnet = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FEAT_DIM", 2048)
    cfg = make_cfg("MODEL.HEADS.NAME", head, "MODEL.META_ARCHITECTURE", architecture, *resnet)
    cfg.MODEL.LOSSES.NAME = names
    with pytest.raises(ValueError, match=said):
        build_model(cfg)


def test_losses_that_are_known():
    resnet = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FEAT_DIM", 2048)
    cfg = make_cfg("MODEL.LOSSES.NAME", ("Cosface", "CircleLoss", "TripletLoss", "CrossEntropyLoss"), *resnet)
    assert build_model(cfg).collects_mbj
    cfg.MODEL.HEADS.NAME = "EmbeddingHead"
    assert not hasattr(build_model(cfg), "collects_mbj")
    assert meta_arch_build.build_model.__wrapped__ and fastreid_engine.build_model is meta_arch_build.build_model
