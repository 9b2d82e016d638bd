"""One cell on images that are drawn here: the fast loop against a plain one, resuming, what its row says."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from drawn_images import assert_same_weights, drawn, plain_batch, plain_steps

from benchmarks import cells as results
from benchmarks.classification.passenger import Features, passenger_row
from benchmarks.classification.recipe import STATISTICS, build_model
from benchmarks.classification.settings import Method, Protocol, load_settings
from benchmarks.classification.training import CellRun
from benchmarks.rivals import create_loss
from tests.make_mbj_loss import mbj_loss

TINY = Protocol(depth=8, width=4, epochs=3, milestones=(2,), warmup_epochs=1, batch_size=8, padding=2)
MBJ = Method(memory="feature", classifier="shared", eta=15, norm="max", start=1, loss="balanced_softmax")


def run(method=MBJ, protocol=TINY, seed=0):
    cell = CellRun(protocol, method, drawn(), seed)
    assert cell.train()
    return cell


def same_state(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_fast_loop_computes_what_a_plain_loop_computes():
    fast, images = run(), drawn()
    model, counts = build_model(TINY, MBJ, 10, 0), np.bincount(images.train_labels)
    base, start = create_loss("balanced_softmax", counts), len(images.train) // TINY.batch_size
    criterion = mbj_loss(counts, base, classifier="shared", eta=15, norm="max", start=start, seed=0).bind(model)
    for _, _, draw in plain_steps(images, TINY, model):
        x, y = plain_batch(images, draw, 2)
        criterion(model(x), y).backward()
    assert_same_weights(fast, model)
    memory, expected = fast.criterion.memories["feature"].bank, criterion.memories["feature"].bank
    assert torch.equal(memory.labels, expected.labels) and memory.filled > 10
    torch.testing.assert_close(memory.rows, expected.rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method", [MBJ, Method(memory="both", start=1), Method(loss="bbn"), Method(loss="iem")], ids=str
)
def test_an_interrupted_cell_goes_on_exactly(tmp_path, method):
    whole, file, stops = run(method), tmp_path / "cell.pt", 0
    while not (part := CellRun(TINY, method, drawn(), 0)).train(file, deadline=-math.inf):
        stops += 1
    assert stops == TINY.epochs - 1 and part.result()["resumed"] == stops
    assert same_state(part.model, whole.model) and same_state(part.criterion, whole.criterion)
    without_time = [
        {k: v for k, v in cell.result().items() if k not in ("seconds", "resumed")} for cell in (part, whole)
    ]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize(
    "method",
    [
        Method(memory="feature", eta=15, norm="max", start=1),
        Method(memory="feature", eta=2, norm="max", start=0, size=20, loss="balanced_softmax"),
        Method(memory="feature", norm="max", loss="focal", sample=7),
        Method(memory="feature", eta=1, norm="max", start=1, classifier_loss="balanced_softmax"),
    ],
    ids=["mbj", "balanced", "sample", "own-loss"],
)
@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_a_passenger_is_the_run_by_itself(tmp_path, method, precision):
    assert method.is_passenger
    host = dataclasses.replace(TINY, curve_stride=3)
    alone = CellRun(host, method, drawn(), 0, precision=precision)
    assert alone.train()
    # The run of the batch loss is interrupted after each epoch, and goes on with its log.
    file = tmp_path / "host.pt"
    while True:
        run = CellRun(host, Method(loss=method.loss), drawn(), 0, precision=precision, log_folder=tmp_path / "log")
        if run.train(file, deadline=-math.inf):
            break
    row, expected = passenger_row(method, Features(run)), alone.result()
    assert {**row, "seconds": 0, "resumed": 0} == {**expected, "seconds": 0}
    assert row["per_class_error"] != run.result()["per_class_error"] or method.loss == "focal"


def test_a_classifier_loss_of_its_own_is_trained_on_the_features(tmp_path):
    run = CellRun(TINY, Method(), drawn(), 0, log_folder=tmp_path)
    assert run.train()
    own = passenger_row(Method(classifier_loss="balanced_softmax"), Features(run))
    same = passenger_row(Method(classifier_loss="ce"), Features(run))
    assert same["curve"] == run.curve and same["per_class_error"] == run.result()["per_class_error"]
    assert own["curve"] != run.curve


def test_what_takes_the_finished_classifier_s_place(tmp_path):
    run = CellRun(TINY, Method(), drawn(), 0, log_folder=tmp_path)
    assert run.train()
    features = Features(run)
    row = passenger_row(Method(after="logit_adjustment", tau=1.5), features)
    counts = run.counts / run.counts.sum()
    with torch.no_grad():
        logits = run.model.fc(features.test).numpy() - 1.5 * np.log(counts)
    wrong = logits.argmax(1) != run.test_labels
    assert row["error"] == pytest.approx(100 * wrong.mean(), abs=1e-3)
    assert row["error"] != run.result()["error"]
    with torch.no_grad():
        weight = run.model.fc.weight / run.model.fc.weight.norm(dim=1, keepdim=True)
        wrong = (features.test @ weight.T).argmax(1).numpy() != run.test_labels
        row = passenger_row(Method(after="tau_normalization"), features)
        assert row["error"] == pytest.approx(100 * wrong.mean(), abs=1e-3)
        means = torch.stack([features.train[run.train_labels == c].mean(0) for c in range(10)])
        wrong = (features.test @ torch.nn.functional.normalize(means).T).argmax(1).numpy() != run.test_labels
        row = passenger_row(Method(after="nearest_class_mean"), features)
        assert row["error"] == pytest.approx(100 * wrong.mean(), abs=1e-3)


@pytest.mark.parametrize("loss", ["ce", "ldam_drw", "bbn", "iem"])
def test_logits_are_fp32_whatever_the_features(loss):
    """So no class ties with another by rounding, and no loss starts from coarser logits than the next."""
    cell, seen = CellRun(TINY, Method(loss=loss), drawn(), 0, precision="amp"), []
    cell.criterion.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    cell._train_epoch()
    with torch.no_grad():
        cell.model.eval()
        seen.append(cell._logits(cell.batches.batch(next(cell.batches.epoch(0)))[0]))
    assert all(one.dtype == torch.float32 and not torch.equal(one, one.bfloat16().float()) for one in seen)


def test_bf16_is_near_fp32_and_not_the_same():
    models = {}
    for precision in ("fp32", "amp"):
        cell = CellRun(TINY, Method(), drawn(), 0, precision=precision)
        cell._train_epoch()
        models[precision] = cell.model.state_dict()
    for key, value in models["fp32"].items():
        if value.is_floating_point():
            assert (models["amp"][key] - value).norm() <= 0.15 * value.norm() + 0.02, key
    assert not torch.equal(models["fp32"]["conv1.weight"], models["amp"]["conv1.weight"])


def test_methods_of_one_seed_are_paired():
    # Before the memory loss starts, MBJ is its batch loss: same weights, same batches, to the bit.
    short = dataclasses.replace(TINY, epochs=2, milestones=(1,))
    off = Method(loss="balanced_softmax")
    later = dataclasses.replace(MBJ, start=2)
    assert same_state(run(off, short).model, run(later, short).model)
    assert not same_state(run(off, short).model, run(MBJ, TINY).model)
    assert not same_state(run(off, short).model, run(off, short, seed=1).model)


# Every loss, every memory and classifier: the other methods change a number in one of these.
SHIPPED = ["ce", "focal", "cb_focal", "ldam_drw", "bbn", "iem", "mbj_paper", "mbj_shared", "mbj_sample10", "mbj_w"]
SHIPPED += ["mbj_wf", "mbj_shared_wf", "balanced_softmax_mbj"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_kind_of_shipped_method_trains(name):
    method = load_settings().methods[name]
    one = dataclasses.replace(TINY, epochs=2, milestones=(1,))
    cell, images = run(method, one), drawn()
    result, (mean, std) = cell.result(), STATISTICS[10]

    def answers(pixels):
        x = (torch.from_numpy(pixels) / 255 - torch.tensor(mean)) / torch.tensor(std)
        with torch.no_grad():
            return cell.model.eval()(x.permute(0, 3, 1, 2)).argmax(1).numpy()

    # The errors are those of the model in the end, class by class.
    wrong = answers(images.test) != images.test_labels
    assert result["train_accuracy"] == pytest.approx(
        100 * (answers(images.train) == images.train_labels).mean(), abs=1e-3
    )
    per_class = [100 * wrong[images.test_labels == label].mean() for label in range(10)]
    assert result["per_class_error"] == pytest.approx(per_class, abs=1e-3)
    assert result["error"] == pytest.approx(np.mean(per_class), abs=1e-3) and not result["diverged"]
    assert [point["epoch"] for point in result["curve"]] == [1, 2]
    assert result["curve"][-1]["error"] == result["error"]


def test_a_run_that_diverges_has_a_row(tmp_path):
    cell = run(protocol=dataclasses.replace(TINY, lr=1e30))
    results.append_row(tmp_path / "rows.jsonl", cell.result())
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["diverged"] and row["curve"][-1]["train_loss"] is None


def test_result_groups_by_rank():
    cell = run()
    result, per_class = cell.result(), cell.test_error()
    assert result["head"] == pytest.approx(per_class[:2].mean(), abs=1e-3)
    assert result["medium"] == pytest.approx(per_class[2:4].mean(), abs=1e-3)
    assert result["tail"] == pytest.approx(per_class[4:].mean(), abs=1e-3)
    assert result["many_shot"] is None and result["few_shot"] == result["error"]
    assert result["error"] == pytest.approx(result["curve"][-1]["error"])
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("name", ["cifar10_lt100", "cifar100_lt10"])
def test_the_paper_protocol_is_the_recipe_of_the_shipped_configs(name):
    configs = Path(__file__).parents[3] / "configs" / "timm"
    config = yaml.safe_load((configs / "base_cifar_lt.yaml").read_text())
    leaf = yaml.safe_load((configs / f"{name}.yaml").read_text())
    paper = load_settings().protocols["paper"]
    for key in ("epochs", "batch_size", "lr", "momentum", "weight_decay", "decay_rate", "warmup_epochs"):
        assert getattr(paper, key) == config[key], key
    assert list(paper.milestones) == config["decay_milestones"] and paper.padding == config["crop_pad"]
    statistics = STATISTICS[leaf["num_classes"]]
    if "mean" in leaf:
        assert [list(s) for s in statistics] == [leaf["mean"], leaf["std"]]
    else:
        cfg = build_model(paper, MBJ, 10, 0).default_cfg
        assert list(statistics) == [cfg["mean"], cfg["std"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_computes_what_an_eager_one_computes():
    cells = [CellRun(TINY, MBJ, drawn(), 0, "cuda", graph=graph) for graph in (False, True)]
    assert all(cell.train() for cell in cells)
    for key, value in cells[0].model.state_dict().items():
        torch.testing.assert_close(cells[1].model.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)
    for key, value in cells[0].criterion.state_dict().items():
        if not key.endswith("slot_rows"):
            assert torch.equal(cells[1].criterion.state_dict()[key], value), key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_passenger_computes_what_an_eager_one_computes(tmp_path):
    method = Method(memory="feature", eta=15, norm="max", start=1)
    host = CellRun(TINY, Method(), drawn(), 0, "cuda", log_folder=tmp_path)
    assert host.train() and host.graph
    rows = []
    for graph in (True, False):
        host.graph = graph
        rows.append(passenger_row(method, Features(host)))
    losses = [[point["train_loss"] for point in row["curve"]] for row in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
