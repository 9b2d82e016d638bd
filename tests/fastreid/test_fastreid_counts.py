"""Class counts, starts and seeds of a training set, by value."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from fastreid.engine.train_loop import SimpleTrainer, TrainerBase
from fastreid.modeling.heads import build_heads
from test_fastreid_head_values import COUNTS, Model, make_cfg, make_head
from torch.utils.data import ConcatDataset, Subset

from mbj_plugin.fastreid import counts
from mbj_plugin.fastreid.counts import class_counts, labels_of, prepare
from mbj_plugin.fastreid.install import install


def labelled(**attributes):
    return SimpleNamespace(**attributes)


def items(*names):
    """As CommDataset's: path, person, camera."""
    return [("path", name, 0) for name in names]


def people(images=tuple(COUNTS)):
    """A data set of as many images of each class."""
    return labelled(targets=[label for label, count in enumerate(images) for _ in range(count)])


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        (labelled(img_items=items("b", "a", "b"), pid_dict={"a": 0, "b": 1}), [1, 0, 1]),
        (labelled(img_items=items("b", "a"), class_to_idx={"a": 0, "b": 1}), [1, 0]),
        (labelled(img_items=items(2, 0, 1)), [2, 0, 1]),
        (labelled(targets=[3, 0]), [3, 0]),
        (labelled(labels=torch.tensor([3, 0], dtype=torch.int32)), [3, 0]),
        (Subset(labelled(targets=[5, 6, 7]), [2, 0]), [7, 5]),
        (ConcatDataset([Subset(labelled(targets=[5, 6]), [0, 1]), Subset(labelled(targets=[7]), [0])]), [5, 6, 7]),
    ],
    ids=lambda value: type(value).__name__,  # the same in every process
)
def test_labels_of_every_kind_of_data_set(dataset, labels):
    found = labels_of(dataset)
    assert found.dtype == torch.long and found.tolist() == labels


@pytest.mark.parametrize("given", [None, [[1, 2]], [0.5, 1.0], ["a", "b"], [[1], [2, 3]], 3], ids=str)
def test_labels_that_are_not_one_integer_an_image(given):
    with pytest.raises(ValueError, match="^SimpleNamespace does not say the label of each image: give it fast-reid's"):
        labels_of(labelled(targets=given))


def test_counts_of_classes():
    counted = class_counts(labelled(targets=[2, 0, 2, -1, 1, -1]), 5)
    assert counted.tolist() == [1, 1, 2, 0, 0] and counted.dtype == torch.long
    assert class_counts(labelled(targets=[2, 0]), 3).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="^MODEL.HEADS.NUM_CLASSES is 2, .* labels up to 2: set it to 3, or to 0 to"):
        class_counts(labelled(targets=[2, 0]), 2)
    with pytest.raises(ValueError, match="^the training set has no images: check DATASETS.NAMES"):
        class_counts(labelled(targets=torch.zeros(0, dtype=torch.long)), 2)


@pytest.fixture
def said(monkeypatch):
    """Lines of the plugin's logger, by level."""
    lines = {"info": [], "warning": []}
    for level, each in lines.items():
        monkeypatch.setattr(counts.logger, level, lambda text, *values, each=each: each.append(text % values))
    return lines


def loader(**attributes):
    return SimpleNamespace(dataset=labelled(**attributes) if attributes else people())


def test_what_every_head_is_told(said):
    heads = [make_head(START=0.5), make_head(START=0.5)]
    for head in heads:
        head.describe_training_set(torch.ones(5), 1)
    prepare(Model(*heads), loader())
    for head in heads:  # 22 images in batches of 4 are 5 iterations an epoch, of which there are ten
        assert head.start == 25
        for memory in head.memories.values():
            assert memory.start == 25 and memory.class_counts.tolist() == COUNTS
    line = "MBJ: both memory of 11; 5 classes of 1 to 9 images; its loss counts from iteration 25"
    assert said == {"info": [line], "warning": []}


def test_classes_without_images_are_not_among_those_that_are_said(said):
    prepare(Model(make_head()), loader(targets=[0, 0, 0, 2, 2, 2, 2]))
    assert "; 2 classes of 3 to 4 images; its loss counts from iteration 0" in said["info"][0]


def test_that_no_decay_comes_is_said_once(said):
    heads = [make_head("SOLVER.STEPS", [10], START=start) for start in ("auto", "auto", "auto")]
    prepare(Model(*heads), loader())
    assert len(said["warning"]) == 1 and [head.start for head in heads] == [30, 30, 30]
    assert "STEPS [10]" in said["warning"][0] and "starts at iteration 30" in said["warning"][0]


def test_fewer_images_than_a_batch():
    with pytest.raises(ValueError, match="^the training set has 3 images, fewer than SOLVER.IMS_PER_BATCH 4: an epoch"):
        prepare(Model(make_head()), loader(targets=[0, 1, 2]))
    prepare(Model(make_head()), loader(targets=[0, 1, 2, 3]))  # one iteration an epoch


def test_where_there_is_no_memory_nothing_is_counted():
    prepare(Model(make_head(ETA=0)), None)


def test_a_head_of_features_where_classes_are_evaluated():
    data = {"class_to_idx": {"a": 0, "b": 4}, "img_items": items("a", "b", "a", "a")}
    with pytest.raises(ValueError, match="HEADS.NAME is MBJHead, which returns features"):
        prepare(Model(make_head()), loader(**data))
    prepare(Model(make_head()), loader(**data, pid_dict={"a": 0, "b": 4}))


def seed_of(run, name):
    return int.from_bytes(hashlib.blake2b(f"{run} {name}".encode(), digest_size=8).digest(), "big", signed=True)


def test_seeds_are_of_the_run_the_number_in_the_model_and_the_kind(monkeypatch):
    """The first rank's seed, on every rank; and none that is drawn, so that the run draws what it would have drawn."""
    monkeypatch.setattr(counts.comm, "all_gather", lambda mine: [mine + 100, mine])
    heads = [make_head(), make_head(MEMORY="feature")]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    counts.seed_draws(heads)
    assert torch.equal(torch.get_rng_state(), state)
    assert heads[0].memories["prototype"].seed == seed_of(111, "0 prototype")
    assert heads[0].memories["feature"].seed == seed_of(111, "0 feature")
    assert heads[1].memories["feature"].seed == seed_of(111, "1 feature")
    heads[1].memories["feature"].step.fill_(1)  # goes on
    torch.manual_seed(12)
    counts.seed_draws(heads)
    assert heads[0].memories["feature"].seed == seed_of(112, "0 feature")
    assert heads[1].memories["feature"].seed == seed_of(111, "1 feature")
    own = make_head(SEED=5)
    counts.seed_draws([own])
    assert own.memories["prototype"].seed == seed_of(5, "0 prototype")


class Trainer(TrainerBase):
    """Has nothing to do."""

    def run_step(self):
        pass


def begin_training(model, start_epoch, inner):
    """An epoch of five iterations."""
    trainer = Trainer()
    if inner:
        trainer._trainer = SimpleNamespace(model=model)
    else:
        trainer.model = model
    trainer.train(start_epoch, start_epoch + 1, 5)


@pytest.mark.parametrize("inner", [True, False])
def test_a_training_says_where_it_begins(inner):
    head = make_head(START=30)
    begin_training(Model(head), 4, inner)
    assert head.memories["prototype"].start == 10  # iteration 30 of the run, of which 20 are past
    begin_training(Model(make_head(ETA=0)), 0, inner)
    begin_training(None, 0, inner)


def test_trainers_are_watched_once_and_prepare_before_they_begin(said):
    init, train = SimpleTrainer.__init__, TrainerBase.train
    install()
    assert SimpleTrainer.__init__ is init and TrainerBase.train is train
    head = build_heads(make_cfg(MOMENTUM=0.0))

    class Loader(list):
        dataset = people()

    trainer = SimpleTrainer(Model(head), Loader([1]), "optimizer", "wrapper")
    assert (trainer.optimizer, trainer.param_wrapper) == ("optimizer", "wrapper") and len(said["info"]) == 1
    assert head.memories["feature"].class_counts.tolist() == COUNTS
