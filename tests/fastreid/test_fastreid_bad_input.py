"""What MBJHead says where it is used wrongly, and own models and loops that use it right."""

import copy

import pytest
import torch
from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, build_model

from mbj_plugin.fastreid import collect_losses, prepare
from mbj_plugin.fastreid.collect import mbj_heads

MAX = ("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64)


def test_targets_that_are_not_one_label_per_image(make_cfg):
    head = build_heads(make_cfg("MODEL.HEADS.NUM_CLASSES", 24))
    with pytest.raises(ValueError, match=r"one label per image.*\(2, 5\)"):
        head(torch.randn(2, 16, 4, 2), torch.zeros(2, 5))


def test_a_loss_that_nobody_collected(make_cfg, make_trainer):
    model = build_heads(make_cfg("MODEL.HEADS.NUM_CLASSES", 24))
    model.describe_training_set(torch.ones(24), 9)
    features, targets = torch.randn(4, 16, 4, 2), torch.zeros(4, dtype=torch.long)
    model(features, targets)
    with pytest.raises(RuntimeError, match="collect_losses"):
        model(features, targets)


def test_class_counts_that_nobody_gave(make_cfg):
    head = build_heads(make_cfg("MODEL.HEADS.NUM_CLASSES", 24))
    with pytest.raises(ValueError, match=r"prepare\(model, data_loader\)"):
        head(torch.randn(4, 16, 4, 2), torch.zeros(4, dtype=torch.long))


class OwnModel(torch.nn.Module):
    """A model that no registry of fast-reid knows."""

    def __init__(self, cfg, wrap=lambda loss: {"loss": loss}):
        super().__init__()
        self.heads, self.wrap = build_heads(cfg), wrap

    def forward(self, batch):
        features = batch["images"].mean((1, 2, 3))[:, None, None, None].expand(-1, 16, 4, 2)
        return self.wrap(self.heads(features, batch["targets"])["cls_outputs"].sum())


def test_own_models_and_loops(make_cfg, make_trainer):
    loader = make_trainer().data_loader
    model = OwnModel(make_cfg(*MAX, "MODEL.HEADS.NUM_CLASSES", 24))
    collect_losses(model)
    collect_losses(model)  # changes nothing
    prepare(model, loader)
    for batch, _ in zip(loader, range(4), strict=False):
        losses = model(batch)
    assert losses.keys() == {"loss", "loss_mbj"} and losses["loss_mbj"] > 0


def test_a_model_without_a_loss_dict(make_cfg, make_trainer):
    loader = make_trainer().data_loader
    model = OwnModel(make_cfg(*MAX, "MODEL.HEADS.NUM_CLASSES", 24), wrap=lambda loss: loss)
    collect_losses(model)
    prepare(model, loader)
    with pytest.raises(TypeError, match="not a dict of losses"):
        model(next(iter(loader)))


def test_a_failed_step_leaves_nothing_behind(make_trainer, steps):
    trainer, waiting = make_trainer(*MAX), []
    head, batch = mbj_heads(trainer.model)[0], next(trainer._trainer._data_loader_iter)
    with pytest.raises(AssertionError):
        trainer.model(copy.deepcopy(batch))  # no EventStorage: the model itself fails, after its head
    assert len(head.pending) == 1
    head.register_forward_hook(lambda *_: waiting.append(len(head.pending)))
    steps(trainer, 2)
    assert waiting == [1, 1] and not head.pending  # each step's own loss, and not the failed one's beside it


@pytest.mark.parametrize(
    ("head", "names", "said"),
    [
        ("EmbeddingHead", ("MBJLoss",), r"HEADS\.NAME is EmbeddingHead: set it to MBJHead"),
        ("MBJHead", ("MBJLoss",), r"LOSSES\.NAME has MBJLoss alone.*CrossEntropyLoss"),
    ],
)
def test_losses_that_train_nothing(make_cfg, head, names, said):
    cfg = make_cfg("MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", names, "MODEL.HEADS.NUM_CLASSES", 3)
    with pytest.raises(ValueError, match=said):
        build_model(cfg)


def test_the_registry_still_hands_out_classes_to_derive_from(make_cfg):
    class Derived(META_ARCH_REGISTRY.get("Baseline")):
        pass

    if "Derived" not in META_ARCH_REGISTRY._obj_map:
        META_ARCH_REGISTRY.register(Derived)
    model = build_model(make_cfg("MODEL.META_ARCHITECTURE", "Derived", "MODEL.HEADS.NUM_CLASSES", 3))
    assert isinstance(model, Derived) and model.collects_mbj


def test_an_architecture_without_configured_heads(make_cfg):
    if "Headless" not in META_ARCH_REGISTRY._obj_map:
        META_ARCH_REGISTRY._do_register("Headless", lambda cfg: torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Headless builds other heads"):
        build_model(make_cfg("MODEL.META_ARCHITECTURE", "Headless"))
