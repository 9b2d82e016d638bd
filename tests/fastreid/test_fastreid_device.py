"""MBJHead on a GPU that is none: one device, no host sync, no shape from data; see tests/test_device.py."""

import pytest
import torch
from fastreid.config import get_cfg
from test_device import COUNTS, PLANTED, FakeTensorMode, backward, on_fake_gpu

from mbj_plugin.fastreid.head import MBJHead
from mbj_plugin.settings import Memories


def step_on_fake_gpu(layer="Linear", memory="both", *options) -> None:
    cfg = get_cfg()
    shape = ["MODEL.BACKBONE.FEAT_DIM", 4, "MODEL.HEADS.NUM_CLASSES", 3, "MODEL.HEADS.CLS_LAYER", layer]
    cfg.merge_from_list([*shape, "MODEL.HEADS.SCALE", 16, "MODEL.MBJ.MEMORY", memory, "MODEL.MBJ.SIZE", 5, *options])
    head = MBJHead(cfg)
    head.describe_training_set(torch.tensor(COUNTS), iters_per_epoch=1)
    head.cls_layer.forward = lambda logits, targets: logits  # fast-reid's margins have shapes from data
    head.collecting = True
    with FakeTensorMode():
        on_fake_gpu(head)
        x = torch.empty(6, 4, 1, 1, device="cuda", requires_grad=True)
        y = torch.empty(6, dtype=torch.long, device="cuda")
        for _ in range(2):
            outputs = head(x, y)
            value = head.pending.pop()
            gradients = backward(value + outputs["cls_outputs"].sum())
        assert value.device.type == "cuda"
        for leaf in (x, head.weight):
            assert gradients[leaf].device.type == "cuda" and gradients[leaf].shape == leaf.shape


@pytest.mark.parametrize("options", [[], ["MODEL.MBJ.MOMENTUM", 0.5, "MODEL.HEADS.WITH_BNNECK", True]])
@pytest.mark.parametrize("layer", ["Linear", "CosSoftmax"])
def test_a_step_on_a_gpu(layer, options):
    step_on_fake_gpu(layer, "both", *options)


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("memory", ["prototype", "feature"])
def test_a_fault_in_the_head_is_seen(memory, fault, monkeypatch):
    (error, plant), loss_of = PLANTED[fault], Memories.forward
    monkeypatch.setattr(Memories, "forward", lambda self, *args: plant(loss_of(self, *args)))
    with pytest.raises(error):
        step_on_fake_gpu(memory=memory)
