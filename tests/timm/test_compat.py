"""Each thing of timm that is private or young has one place, which says what has changed and in which timm."""

import argparse
import ast
import sys
from pathlib import Path

import pytest
import timm
from timm import loss, utils
from timm.task import TrainingTask, _helpers
from timm.utils import cuda

from mbj_plugin.timm import MBJLoss, MBJTask, compat

PACKAGE = Path(compat.__file__).parent


class PrefetchLoader:
    pass


class TaskWithNew:
    def __new__(cls):
        return object.__new__(cls)


def within_train_py(**locals_):
    args, loader_train = locals_["args"], locals_["loader_train"]
    return compat.training_run(), args, loader_train


@pytest.mark.parametrize(
    ("name", "change", "use"),
    [
        ("check_task_state", (TrainingTask, "get_task_state"), lambda: MBJTask(model(), MBJLoss([3, 2]))),
        ("load_checkpoint", (_helpers, "_load_train_checkpoint"), lambda: compat.load_checkpoint("x")),
        ("create_classification_loss", (loss, "create_classification_loss"), compat.create_classification_loss),
        ("replace_clip", (cuda, "dispatch_clip_grad", None), lambda: compat.replace_clip(None)),
        ("replace_update_summary", (utils, "update_summary", len), lambda: compat.replace_update_summary(None)),
        ("make_tasks_by", (compat, "TrainingTask", TaskWithNew), lambda: compat.make_tasks_by(None)),
        ("loader_inside", None, lambda: compat.loader_inside(PrefetchLoader())),
        ("go_on_saving", (compat.timm, "__version__", "1.0.31"), lambda: compat.go_on_saving(object(), "x")),
        ("training_run", (sys.modules["__main__"], "_parse_args", None), compat.training_run),
        ("training_run", None, lambda: within_train_py(args=argparse.Namespace(seed=1), loader_train=[1])),
    ],
)
def test_what_timm_has_changed_is_named(monkeypatch, name, change, use):
    if change is not None and len(change) == 3:
        monkeypatch.setattr(*change, raising=False)
    elif change is not None:
        monkeypatch.delattr(*change, raising=False)
    upstream, what = compat.RELIES[name]
    with pytest.raises(compat.UpstreamChangedError) as caught:
        use()
    assert all(part in str(caught.value) for part in (timm.__version__, upstream, what))


def model():
    return timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=2)


def test_every_reliance_is_tested():
    (mark,) = test_what_timm_has_changed_is_named.pytestmark
    assert {case[0] for case in mark.args[1]} == set(compat.RELIES)


def test_nothing_private_of_timm_is_imported_elsewhere():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("timm"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert file.name == "compat.py" or not [name for name in names if name.startswith("_")], file
