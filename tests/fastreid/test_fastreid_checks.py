"""What would end a run late or train nothing is said before training, in one line at the doors."""

import shutil

import pytest
import torch
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.evaluation.clas_evaluator import ClasEvaluator
from fastreid.evaluation.rank import evaluate_rank
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, build_model
from torch.utils.data import DataLoader

from mbj_plugin.fastreid import checks
from mbj_plugin.tools.fastreid.synthetic import FOLDER

CLASSES = ("MODEL.HEADS.NUM_CLASSES", 24)


@pytest.mark.parametrize("head", ["MBJHead", "EmbeddingHead"])
@pytest.mark.parametrize(
    ("names", "architecture", "said"),
    [
        (
            ("CrossEntropyLos",),
            "Baseline",
            "'CrossEntropyLos', which Baseline does not know.* CrossEntropyLoss, ",
        ),
        (("CrossEntropyLoss", "tripletloss", "MBJLoss"), "Baseline", "'tripletloss'"),
        (("CrossEntropyLoss", "Cosface"), "MGN", "'Cosface', which MGN does not know.* CrossEntropyLoss, TripletLoss$"),
    ],
)
def test_a_misspelt_loss(make_cfg, head, names, architecture, said):
    resnet = ("MODEL.BACKBONE.NAME", "build_resnet_backbone") if architecture == "MGN" else ()
    cfg = make_cfg("MODEL.HEADS.NAME", head, "MODEL.META_ARCHITECTURE", architecture, *resnet, *CLASSES)
    cfg.MODEL.LOSSES.NAME = names
    with pytest.raises(ValueError, match=said):
        build_model(cfg)


@pytest.mark.parametrize("names", ["CrossEntropyLoss", ("CrossEntropyLoss",), ("Cosface", "CircleLoss", "TripletLoss")])
def test_losses_that_are_known(make_cfg, names):
    cfg = make_cfg("MODEL.LOSSES.NAME", (), *CLASSES)
    cfg.MODEL.LOSSES.NAME = names
    build_model(cfg)


def test_a_projects_own_losses_are_only_warned_about(make_cfg, monkeypatch):
    class Own(META_ARCH_REGISTRY.get("Baseline")):
        def losses(self, outputs, gt_labels):
            return super().losses(outputs, gt_labels)

    said = []
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "Own", Own)
    monkeypatch.setattr(checks.logger, "warning", said.append)
    build_model(make_cfg("MODEL.META_ARCHITECTURE", "Own", "MODEL.LOSSES.NAME", ("OwnLoss",), *CLASSES))
    assert "'OwnLoss'" in said[0]


def test_a_model_that_needs_a_head_of_its_own(make_cfg, monkeypatch):
    """PartialReID's."""
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "PartialBaseline", META_ARCH_REGISTRY.get("Baseline"))
    with pytest.raises(ValueError, match="PartialBaseline .*DSRHead"):
        build_model(make_cfg("MODEL.META_ARCHITECTURE", "PartialBaseline", *CLASSES))


@pytest.mark.parametrize("head", ["MBJHead", "EmbeddingHead"])
def test_no_loss_at_all(make_trainer, head):
    with pytest.raises(ValueError, match=r"LOSSES\.NAME is empty.*CrossEntropyLoss"):
        make_trainer("MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", ())


def test_a_model_with_another_batch_loss_needs_no_name(make_trainer, steps):
    queue = ("MODEL.META_ARCHITECTURE", "MoCo", "MODEL.QUEUE_SIZE", 64)
    assert steps(make_trainer(*queue, "MODEL.LOSSES.NAME", ()), 2)[-1].keys() == {"loss_mb", "loss_mbj"}


def test_an_own_model_without_a_batch_loss(make_trainer, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer.model, "losses", lambda outputs, targets: {})
    with pytest.raises(ValueError, match="no batch loss, so the memory loss would train alone"):
        trainer.model(next(trainer._trainer._data_loader_iter))


class ClasSet(CommDataset):
    """As FastClas's: labels by ``class_to_idx``."""

    def __init__(self, items):
        super().__init__(items)
        self.class_to_idx = self.pid_dict
        del self.pid_dict


def test_a_head_of_features_where_classes_are_looked_for(make_cfg, make_trainer):
    trainer = make_trainer()
    loader = DataLoader(ClasSet(trainer.data_loader.dataset.img_items))
    with pytest.raises(ValueError, match="HEADS.NAME is MBJHead, which returns features.*set it to ClasHead"):
        SimpleTrainer(trainer.model, loader, trainer.optimizer, None)
    with pytest.raises(ValueError, match="EmbeddingHead, which returns features"):
        ClasEvaluator(make_cfg("MODEL.HEADS.NAME", "EmbeddingHead"))
    assert ClasEvaluator(make_cfg("MODEL.HEADS.NAME", "ClasHead"))


def test_a_finished_run_resumed(make_trainer):
    make_trainer().train()
    again = make_trainer()
    again.resume_or_load(resume=True)
    with pytest.raises(ValueError, match="2 epochs behind it and SOLVER.MAX_EPOCH is 2.*raise MAX_EPOCH"):
        again.train()


def no_training(trainer):
    trainer.run_step = lambda: pytest.fail("it trains")
    return trainer.train


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (("DATASETS.TESTS", ()), ValueError, "DATASETS.TESTS is empty"),
        (("DATASETS.TESTS", ("Markt1501",)), KeyError, "no 'Markt1501' in .*DATASET, did you mean Market1501"),
        (
            ("DATASETS.TESTS", ("Market1501", "CUHK03")),
            FileNotFoundError,
            "cuhk03 is not there, .*FASTREID",
        ),
    ],
    ids=str,
)
def test_evaluations_that_would_fail(make_trainer, options, error, said):
    with pytest.raises(error, match=said):
        no_training(make_trainer("MODEL.HEADS.NAME", "EmbeddingHead", *options))()


@pytest.fixture
def copy(data_root, tmp_path, monkeypatch):
    """copy(keep, rename): the tiny set with some files, under other names; the loaders read it."""

    def make(keep=lambda part, name: True, rename=str):
        for file in (data_root / FOLDER).glob("*/*.jpg"):
            folder = tmp_path / "data" / FOLDER / file.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            if keep(file.parent.name, file.name):
                shutil.copy(file, folder / rename(file.name))
        monkeypatch.setattr("fastreid.data.build._root", str(tmp_path / "data"))

    return make


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rename": lambda name: name[:5] + "c1" + name[7:]},
            "no query has .* another camera .*1 camera in all",
        ),
        ({"keep": lambda part, name: part != "query"}, "Market1501 has 0 query and 12 gallery images, too few"),
        (
            {"keep": lambda part, name: part != "bounding_box_test" or name < "0029"},
            "12 query and 8 gallery .* 1 and",
        ),
    ],
)
def test_test_sets_that_cannot_be_searched(make_trainer, copy, change, said):
    trainer = make_trainer("MODEL.HEADS.NAME", "EmbeddingHead")
    copy(**change)
    with pytest.raises(ValueError, match=said):
        no_training(trainer)()


def test_one_camera_in_an_evaluation_alone():
    one = torch.zeros(3).numpy()
    with pytest.raises(ValueError, match="test set cannot be evaluated.*another camera"):
        evaluate_rank(torch.zeros(3, 12).numpy(), one, torch.zeros(12).numpy(), one, torch.zeros(12).numpy())


@pytest.mark.parametrize("name", [*DATASET_REGISTRY._obj_map])
def test_a_missing_data_set(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.* is not there.*FASTREID_DATASETS"):
        DATASET_REGISTRY.get(name)(root=str(tmp_path))
