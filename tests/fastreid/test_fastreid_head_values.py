"""MBJHead and the model that collects its losses, by value, on heads of five classes that nothing else surrounds."""

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.heads import build_heads
from torch import nn
from torch.nn import functional as F

from mbj_plugin import FeatureMemoryLoss, PrototypeMemoryLoss

COUNTS, DIM = [9, 6, 4, 2, 1], 3
# Each value its own, so that none can stand for another.
MBJ = {
    **{"MEMORY": "both", "SIZE": 11, "ETA": 0.7, "BETA": 0.4, "NORM": "max", "START": 0},
    **{"MOMENTUM": 0.3, "SCALE": 5.0, "MARGIN": 0.15},
}


def make_cfg(*opts, **mbj):
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.HEADS.NAME", "MBJHead", "MODEL.HEADS.NUM_CLASSES", 5),
            *("MODEL.BACKBONE.FEAT_DIM", DIM, "MODEL.HEADS.WITH_BNNECK", False, "SOLVER.IMS_PER_BATCH", 4),
            *("SOLVER.MAX_EPOCH", 10, "SOLVER.STEPS", [6], "SOLVER.WARMUP_ITERS", 0),
            *[each for key, value in {**MBJ, **mbj}.items() for each in (f"MODEL.MBJ.{key}", value)],
            *opts,
        ]
    )
    return cfg


def make_head(*opts, **mbj):
    torch.manual_seed(1)
    head = build_heads(make_cfg(*opts, **mbj)).train()
    nn.init.normal_(head.weight)
    if head.memories:
        head.describe_training_set(torch.tensor(COUNTS), 5)
    return head


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, DIM, 1, 1, generator=generator), torch.randint(0, 5, (4,), generator=generator)


def core_losses():
    """What MODEL.MBJ above says."""
    return {
        "prototype": PrototypeMemoryLoss(COUNTS, DIM, 11, 0.7, 0.4, "max", scale=5.0, margin=0.15, momentum=0.3),
        "feature": FeatureMemoryLoss(COUNTS, DIM, 11, 0.7, 0.4, "max"),
    }


@pytest.mark.parametrize("memory", ["prototype", "feature", "both"])
@pytest.mark.parametrize("layer", ["Linear", "CosSoftmax"])
def test_the_head_s_memories_are_those_of_the_core(memory, layer):
    """Six steps beside the core's losses: the same losses, gradients and memories."""
    head, core = make_head("MODEL.HEADS.CLS_LAYER", layer, "MODEL.HEADS.SCALE", 6, MEMORY=memory), core_losses()
    kinds = ["feature", "prototype"] if memory == "both" else [memory]
    assert list(head.memories) == kinds
    for step in range(6):
        features, targets = batch(step)
        mine, theirs = (features.clone().requires_grad_() for _ in range(2))
        outputs = head(mine, targets)
        assert set(outputs) == {"cls_outputs", "pred_class_logits", "features"}
        weight = head.weight.detach().clone().requires_grad_()
        losses = []
        for kind in kinds:
            neck = theirs[..., 0, 0]
            if kind == "prototype":
                losses.append(core[kind](neck, targets, weight))
            elif layer == "Linear":
                losses.append(core[kind](neck.detach(), targets, 6 * weight))
            else:
                losses.append(core[kind](F.normalize(neck.detach()), targets, 6 * F.normalize(weight)))
        (loss,), head.pending = head.pending, []
        torch.testing.assert_close(loss, sum(losses))
        gradients = torch.autograd.grad(loss, [mine, head.weight], allow_unused=True)
        wanted = torch.autograd.grad(sum(losses), [theirs, weight], allow_unused=True)
        for found, value in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(found, value)
    assert loss > 0
    for kind in kinds:
        for name, value in core[kind].state_dict().items():
            assert torch.equal(head.memories[kind].state_dict()[name], value), name


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_memory_is_of_the_feature_behind_the_bottleneck(where):
    options = ("MODEL.HEADS.EMBEDDING_DIM", 2, "MODEL.HEADS.NECK_FEAT", where, "MODEL.HEADS.CLS_LAYER", "Linear")
    head = make_head(*options, MEMORY="feature", BETA=0.0)
    features, targets = batch(0)
    head(features, targets)
    assert head._neck is None  # nothing is kept from step to step
    bank = head.memories["feature"].bank
    assert bank.dim == 2 and bank.labels.tolist() == [*targets.tolist(), *[-1] * 7]
    torch.testing.assert_close(bank.rows[:4], head.bottleneck(features)[..., 0, 0])
    assert head._neck is not None
    head._neck = None
    head.eval()(features)
    assert head._neck is None  # evaluation leaves nothing behind


def test_half_precision_is_normalised_in_fp32():
    head = make_head("MODEL.HEADS.CLS_LAYER", "CosSoftmax", MEMORY="feature")
    features = batch(0)[0].half()
    rows, weight = head._classifier(features[..., 0, 0])
    torch.testing.assert_close(rows, F.normalize(features[..., 0, 0].float()), rtol=0, atol=1e-6)
    assert rows.dtype == weight.dtype == torch.float32


def test_in_evaluation_or_without_grad_nothing_is_remembered():
    head = make_head()
    with torch.no_grad():
        assert set(head(*batch(0))) == {"cls_outputs", "pred_class_logits", "features"}
    head.eval()
    assert torch.equal(head(batch(0)[0]), batch(0)[0][..., 0, 0])
    assert not head.pending and head.memories["prototype"].step == head.memories["feature"].step == 0
    assert make_head(ETA=0).bottleneck._forward_hooks == {} and not make_head(ETA=0).pending


@pytest.mark.parametrize(("targets", "got"), [(None, "None"), (torch.zeros(4, 5), r"\(4, 5\)")])
def test_what_targets_must_be(targets, got):
    with pytest.raises(ValueError, match=rf"targets of shape \(batch,\), got {got}\. For multi-label targets set"):
        make_head()(batch(0)[0], targets)


def test_a_loss_waits_for_one_who_collects_it():
    head = make_head()
    head(*batch(0))
    with pytest.raises(RuntimeError, match="^nobody collected the last memory loss of MBJHead, so it trained nothing"):
        head(*batch(1))
    assert len(head.pending) == 1
    head.collecting = True  # a model may call its head twice
    head(*batch(2))
    assert len(head.pending) == 2


def test_counts_that_nobody_gave():
    head = build_heads(make_cfg(MOMENTUM=0.0)).train()
    with pytest.raises(ValueError, match=r"^MBJHead does not know the class counts .*prepare\(model, data_loader\)"):
        head(*batch(0))


@pytest.mark.parametrize(("start", "iteration"), [(7, 7), (0.5, 25), ("auto", 30)])
def test_the_start_of_every_memory(start, iteration):
    head = make_head(START=start)  # ten epochs of five iterations, decay after six
    assert head.start == iteration
    for memory in head.memories.values():
        assert memory.start == iteration and torch.equal(memory.class_counts, torch.tensor(COUNTS).float())
    # A run that goes on at an iteration, with a memory that has seen as many steps, more, fewer or none.
    for at, step, first in ((0, 0, iteration), (3, 3, iteration), (3, 5, iteration + 2), (2, 0, iteration - 2)):
        for memory in head.memories.values():
            memory.step.fill_(step)
        head.begin_at(at)
        assert {memory.start for memory in head.memories.values()} == {first}
    head.begin_at(100)
    assert {(memory.start, int(memory.step)) for memory in head.memories.values()} == {(0, 0)}


def test_a_new_head_starts_at_once():
    assert build_heads(make_cfg()).start == 0


class Model(nn.Module):
    """Two heads on the same features, and the losses it is told to return."""

    def __init__(self, *heads, losses=None):
        super().__init__()
        self.heads, self.returned = nn.ModuleList(heads), losses
        self.fails = False

    def forward(self, features, targets=None):
        for head in self.heads:
            head(features, targets)
        if self.fails:
            raise KeyError("the model itself")
        return {"loss_a": features.sum(), "loss_b": features[:, 0]} if self.returned is None else self.returned
