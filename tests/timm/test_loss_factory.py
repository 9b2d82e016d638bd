import pytest
import timm.loss
import torch
from timm.loss import LabelSmoothingCrossEntropy

from mbj_plugin.timm import MBJLoss, register_loss

pytestmark = pytest.mark.skipif(
    not hasattr(timm.loss, "create_classification_loss"), reason="this timm has no loss factory"
)


def test_the_factory_builds_it():
    loss = timm.loss.create_classification_loss("mbj", class_counts=[9, 5, 2], eta=3.0, norm="max", smoothing=0.1)
    assert isinstance(loss, MBJLoss)
    assert isinstance(loss.base, LabelSmoothingCrossEntropy)
    model = timm.create_model("resnet32_cifar", num_classes=3)
    assert loss.bind(model).memories["feature"].eta == 3.0


def test_timm_s_task_builds_it_from_criterion_kwargs():
    from timm.task import ClassificationTask

    model = timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3)
    task = ClassificationTask(model, criterion_kwargs={"loss_type": "mbj", "class_counts": [9, 5, 2]}, verbose=False)
    task.criterion.bind(model)
    assert torch.isfinite(task(torch.randn(2, 3, 16, 16), torch.tensor([0, 2]))["loss"])


def test_timm_s_error_lists_it_and_other_losses_stay():
    with pytest.raises(ValueError, match="Unknown loss type 'typo'.*'mbj'"):
        timm.loss.create_classification_loss("typo")
    assert isinstance(timm.loss.create_classification_loss(), torch.nn.CrossEntropyLoss)
    assert register_loss()
    assert timm.loss.LOSS_TYPES.count("mbj") == 1


def test_bad_calls():
    with pytest.raises(ValueError, match="class_counts"):
        timm.loss.create_classification_loss("mbj")
    with pytest.raises(ValueError, match="single-label"):
        timm.loss.create_classification_loss("mbj", multi_label=True, class_counts=[1, 2])
