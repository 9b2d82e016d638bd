"""MBJHead inside every model, trainer, sampler and option of fast-reid, on real training steps."""

import pytest
import torch
from fastreid.engine import DefaultPredictor, DefaultTrainer
from fastreid.engine.train_loop import AMPTrainer
from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, build_model
from fastreid.utils.env import seed_all_rng
from torch.nn import functional as F

from mbj_plugin.fastreid import checkpoint, collect_losses, counts, prepare
from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.functional import multi_prototype_loss

MAX = ("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64)


def bank(trainer, kind="prototype"):
    return mbj_heads(trainer.model)[0].memories[kind].bank


def test_one_line_is_enough(make_trainer, steps):
    trainer = make_trainer(*MAX)
    losses = steps(trainer, 6)
    assert trainer.cfg.MODEL.META_ARCHITECTURE == "Baseline"
    assert all(set(loss) == {"loss_cls", "loss_mbj"} for loss in losses)
    assert losses[0]["loss_mbj"] == 0  # nothing is remembered yet
    assert losses[-1]["loss_mbj"] > 0
    assert steps.scalars["loss_mbj"] == losses[-1]["loss_mbj"]


def test_the_loss_is_equation_4_on_what_was_remembered_before_the_step(make_trainer, steps):
    trainer = make_trainer(*MAX, "MODEL.MBJ.ETA", 1 / 7)
    steps(trainer, 5)
    head, seen = mbj_heads(trainer.model)[0], {}
    before = bank(trainer).rows.clone(), bank(trainer).labels.clone()
    head.bottleneck.register_forward_hook(lambda module, inputs, output: seen.update(neck=output[..., 0, 0].detach()))
    head.register_forward_pre_hook(lambda module, inputs: seen.update(targets=inputs[1]))
    loss = steps(trainer, 1)[0]["loss_mbj"]
    similarity = F.normalize(seen["neck"]) @ F.normalize(before[0]).T
    expected = multi_prototype_loss(similarity, seen["targets"], before[1], 16.0, 0.2) / 7
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("layer", ["Linear", "CosSoftmax", "ArcSoftmax", "CircleSoftmax"])
def test_every_classification_layer(make_trainer, steps, layer):
    trainer = make_trainer(*MAX, "MODEL.HEADS.CLS_LAYER", layer, "MODEL.HEADS.SCALE", 16, "MODEL.MBJ.MEMORY", "both")
    assert steps(trainer, 8)[-1]["loss_mbj"] > 0
    for kind in mbj_heads(trainer.model)[0].memories:
        assert bank(trainer, kind).filled > 0


def test_without_eta_it_is_embedding_head_exactly(make_trainer, steps):
    runs = []
    for opts in (("MODEL.HEADS.NAME", "EmbeddingHead"), ("MODEL.MBJ.ETA", 0), ("MODEL.MBJ.START", 17)):
        trainer = make_trainer(*opts)
        losses = [loss["loss_cls"].item() for loss in steps(trainer, 5)]
        runs.append((trainer.model.state_dict(), losses))
    plain, off, waiting = runs
    assert plain[1] == off[1] == waiting[1]
    assert list(plain[0]) == list(off[0])
    for name, value in plain[0].items():
        assert torch.equal(value, off[0][name]) and torch.equal(value, waiting[0][name]), name


@pytest.mark.parametrize("where", ["before", "after"])
def test_memory_of_a_reduced_embedding(make_trainer, steps, where):
    opts = ("MODEL.HEADS.EMBEDDING_DIM", 12, "MODEL.HEADS.NECK_FEAT", where)
    losses = "MODEL.LOSSES.NAME", ("CrossEntropyLoss", "TripletLoss", "MBJLoss")
    trainer = make_trainer(*MAX, *opts, *losses)
    assert steps(trainer, 6)[-1].keys() == {"loss_cls", "loss_triplet", "loss_mbj"}
    assert bank(trainer).dim == 12


def test_a_head_without_bottleneck(make_trainer, steps):
    trainer = make_trainer(*MAX, "MODEL.HEADS.WITH_BNNECK", False)
    assert steps(trainer, 6)[-1]["loss_mbj"] > 0


@pytest.mark.parametrize(
    "sampler",
    [
        ("TrainingSampler",),
        ("NaiveIdentitySampler", "DATALOADER.NUM_INSTANCE", 2),
        ("BalancedIdentitySampler", "DATALOADER.NUM_INSTANCE", 2),
        ("ImbalancedDatasetSampler",),
    ],
    ids=lambda sampler: sampler[0],
)
def test_every_sampler(make_trainer, steps, sampler):
    assert steps(make_trainer(*MAX, "DATALOADER.SAMPLER_TRAIN", *sampler), 6)[-1]["loss_mbj"] > 0


def test_several_data_sets_at_once(make_trainer, steps):
    trainer = make_trainer(*MAX, "DATASETS.NAMES", ("Market1501", "Market1501_LT_H20_S5"))
    assert steps(trainer, 6)[-1]["loss_mbj"] > 0
    assert len(trainer.data_loader.dataset) > 72


@pytest.mark.parametrize("layer_freeze", [False, True])
def test_precise_bn_and_layer_freeze_in_a_whole_run(make_trainer, layer_freeze):
    opts = ("MODEL.FREEZE_LAYERS", ["backbone"], "SOLVER.FREEZE_ITERS", 4) if layer_freeze else ()
    trainer = make_trainer(*MAX, *opts, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3)
    weight, seen = next(trainer.model.backbone.parameters()), []
    step = trainer.run_step
    trainer.run_step = lambda: (step(), seen.append(weight.detach().clone()))
    first = weight.detach().clone()
    trainer.train()
    frozen = [torch.equal(now, first) for now in seen]
    assert frozen == [layer_freeze and iteration < 4 for iteration in range(18)]
    # 18 iterations of training, none of PreciseBN.
    assert mbj_heads(trainer.model)[0].memories["prototype"].step == 18


def test_amp_trainer(make_trainer, steps):
    trainer = make_trainer(*MAX, "SOLVER.AMP.ENABLED", True)
    assert isinstance(trainer._trainer, AMPTrainer)
    assert steps(trainer, 6)[-1]["loss_mbj"] > 0


def test_the_eight_heads_of_mgn_say_once_that_no_decay_comes(make_trainer, monkeypatch):
    said = []
    monkeypatch.setattr(counts.logger, "warning", said.append)
    backbone = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FEAT_DIM", 2048)
    make_trainer(
        *(*MAX, *backbone, "MODEL.META_ARCHITECTURE", "MGN", "MODEL.HEADS.EMBEDDING_DIM", 8),
        *("INPUT.SIZE_TRAIN", [96, 16], "MODEL.MBJ.START", "auto", "SOLVER.STEPS", [99]),
    )
    assert len(said) == 1 and "STEPS [99]" in said[0] and "starts at iteration 11." in said[0]


def seeds(trainer):
    return [int(memory.seed) for head in mbj_heads(trainer.model) for memory in head.memories.values()]


def test_a_seed_of_its_own_is_not_the_runs(make_cfg, make_trainer):
    own, other = (seeds(make_trainer(*MAX, "MODEL.MBJ.SEED", seed)) for seed in (5, 6))
    seed_all_rng(4)
    assert own == seeds(DefaultTrainer(make_cfg(*MAX, "MODEL.MBJ.SEED", 5))) != other


def test_draws_follow_the_runs_seed_the_head_and_the_memory(make_cfg, make_trainer, steps):
    both = (*MAX, "MODEL.MBJ.MEMORY", "both")
    first, again = make_trainer(*both), make_trainer(*both)
    seed_all_rng(4)
    other = DefaultTrainer(make_cfg(*both))
    assert seeds(first) == seeds(again) and len({*seeds(first), *seeds(other)}) == 4
    backbone = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FEAT_DIM", 2048)
    eight = make_trainer(*MAX, *backbone, "MODEL.META_ARCHITECTURE", "MGN", "MODEL.HEADS.EMBEDDING_DIM", 8)
    assert len(set(seeds(eight))) == 8
    # A run that goes on keeps its draws, whoever prepares its model once more.
    steps(first, 1)
    seed_all_rng(5)
    prepare(first.model, first.data_loader)
    assert seeds(first) == seeds(again)
    prepare(other.model, other.data_loader)
    assert len({*seeds(first), *seeds(other)}) == 4


def test_moco(make_trainer, steps):
    trainer = make_trainer(*MAX, "MODEL.META_ARCHITECTURE", "MoCo", "MODEL.QUEUE_SIZE", 64)
    losses = steps(trainer, 6)
    assert losses[-1].keys() == {"loss_cls", "loss_mb", "loss_mbj"} and losses[-1]["loss_mbj"] > 0


@pytest.mark.parametrize("teacher", ["file", "itself"])
def test_distiller_remembers_the_student_only(make_cfg, make_trainer, steps, tmp_path, teacher):
    opts = ["MODEL.META_ARCHITECTURE", "Distiller", "KD.EMA.ENABLED", teacher == "itself"]
    if teacher == "file":
        cfg = make_cfg("MODEL.HEADS.NUM_CLASSES", 24)
        (tmp_path / "teacher.yml").write_text(cfg.dump())
        torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "teacher.pth")
        opts += [
            "KD.MODEL_CONFIG",
            [str(tmp_path / "teacher.yml")],
            "KD.MODEL_WEIGHTS",
            [str(tmp_path / "teacher.pth")],
        ]
    trainer = make_trainer(*MAX, *opts)
    losses = steps(trainer, 6)
    assert losses[-1].keys() == {"loss_cls", "loss_jsdiv", "loss_mbj"} and losses[-1]["loss_mbj"] > 0
    assert len(trainer.model.model_ts) == 1
    teacher_memory = mbj_heads(trainer.model.model_ts[0])[0].memories["prototype"]
    assert teacher_memory.bank.filled == 0 and teacher_memory.step == 0


@pytest.mark.parametrize("classes", [0, 24])
def test_evaluation_needs_no_data_and_no_counts(make_cfg, make_trainer, tmp_path, monkeypatch, classes):
    torch.save({"model": make_trainer().model.state_dict()}, tmp_path / "weights.pth")
    said = []
    for level in ("info", "warning"):
        monkeypatch.setattr(checkpoint.logger, level, lambda message, *values: said.append(message))
    cfg = make_cfg("MODEL.WEIGHTS", str(tmp_path / "weights.pth"), "MODEL.HEADS.NUM_CLASSES", classes)
    cfg.DATASETS.NAMES = ("no such set",)
    assert DefaultPredictor(cfg)(torch.zeros(2, 3, 32, 16)).shape == (2, 16)
    assert not said  # who only evaluates need not hear of memories


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_devices_of_another_machine(make_cfg):
    cfg = make_cfg("MODEL.DEVICE", "cuda:1")
    cfg.freeze()
    assert build_model(cfg).device.type == "cpu" and cfg.is_frozen()


class OwnModel(torch.nn.Module):
    """A model that no registry of fast-reid knows."""

    def __init__(self, cfg):
        super().__init__()
        self.heads = build_heads(cfg)

    def forward(self, batch):
        features = batch["images"].mean((1, 2, 3))[:, None, None, None].expand(-1, 16, 4, 2)
        return {"loss": self.heads(features, batch["targets"])["cls_outputs"].sum()}


def test_own_models_and_loops(make_cfg, make_trainer):
    loader = make_trainer().data_loader
    model = OwnModel(make_cfg(*MAX, "MODEL.HEADS.NUM_CLASSES", 24))
    collect_losses(model)
    prepare(model, loader)
    for batch, _ in zip(loader, range(4), strict=False):
        losses = model(batch)
    assert losses.keys() == {"loss", "loss_mbj"} and losses["loss_mbj"] > 0


def test_the_registry_still_hands_out_classes_to_derive_from(make_cfg, monkeypatch):
    class Derived(META_ARCH_REGISTRY.get("Baseline")):
        pass

    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "Derived", Derived)
    model = build_model(make_cfg("MODEL.META_ARCHITECTURE", "Derived", "MODEL.HEADS.NUM_CLASSES", 3))
    assert isinstance(model, Derived) and model.collects_mbj
