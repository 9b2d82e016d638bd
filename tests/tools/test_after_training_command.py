"""The command on real runs of train_timm: what it prints is true, and what it writes loads in stock timm."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml

from mbj_plugin import logit_adjustment as formulas
from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.after_training import METHODS, _best, classifier, main, parser
from mbj_plugin.tools.finished_run import FinishedRun, Images, saved_args
from mbj_plugin.tools.trainer import build, train


def printed(capsys, *argv):
    """Rows of the table: method to (tau or None, [error, head, medium, tail, many, medium, few]), and all lines."""
    main([str(each) for each in argv])
    lines = capsys.readouterr().out.splitlines()
    rows = {}
    for line in lines:
        cells = line.replace("|", " ").split()
        if cells and cells[0] in METHODS and "left out" not in line:
            numbers = [float("nan") if cell == "-" else float(cell) for cell in cells[1:]]
            rows[cells[0]] = (None if len(numbers) == 7 else numbers[0], numbers[-7:])
    return rows, lines


def stock_errors(folder, checkpoint):
    """[error, head, medium, tail] of a checkpoint that stock timm loads, counted image by image."""
    args = saved_args(folder, "cpu", None)
    model = timm.create_model(args.model, num_classes=10, in_chans=1, checkpoint_path=str(checkpoint), depth=8)
    datasets = build.make_datasets(args)
    loaders = build.make_loaders(args, model, datasets, torch.device("cpu"))
    hits = {c: [] for c in range(10)}
    with torch.no_grad():
        for image, label in datasets[1]:
            hits[label].append(int(model.eval()(image[None])[0].argmax()) == label)
    groups = {"all": range(10)} | class_groups(loaders.counts)
    return [
        100 * (1 - np.mean([hit for c in groups[name] for hit in hits[c]]))
        for name in ("all", "head", "medium", "tail")
    ]


def test_all_of_them_side_by_side(digit_runs, capsys):
    rows, _ = printed(capsys, digit_runs / "mbj")
    assert tuple(rows) == METHODS
    results = json.loads((digit_runs / "mbj" / "results.json").read_text())["errors"]
    names = ("error", "head", "medium", "tail", "many_shot", "medium_shot", "few_shot")
    assert rows["as-trained"][1] == pytest.approx([results[name] for name in names], abs=0.005)
    assert [row[0] for row in rows.values()] == [None, 1, 0.2, 1, None, None]
    assert len({tuple(row[1]) for row in rows.values()}) > 3  # they are not one classifier under six names


def test_several_runs_have_a_mean_and_a_spread(digit_runs, capsys):
    first, second = (printed(capsys, digit_runs / name)[0] for name in ("mbj", "baseline"))
    main([str(digit_runs / "mbj"), str(digit_runs / "baseline")])
    lines = capsys.readouterr().out.splitlines()
    cells = next(line for line in lines if line.startswith("all ")).split()
    means = [np.mean([rows[name][1][0] for rows in (first, second)]) for name in METHODS[:-1]]
    assert [float(cell) for cell in cells[1:16:3]] == pytest.approx(means, abs=0.01)
    with pytest.raises(SystemExit, match="the checkpoint of one run, got 2"):
        main([str(digit_runs / "mbj"), str(digit_runs / "baseline"), "--write", "tau-norm"])


@pytest.mark.parametrize("method", METHODS[1:])
def test_what_is_written_loads_in_stock_timm_and_makes_the_printed_errors(mbj_run, capsys, method):
    rows, lines = printed(capsys, mbj_run, "--write", method)
    written = mbj_run / f"{method}.pth.tar"
    assert lines[-1] == f"Written: {written}"
    assert stock_errors(mbj_run, written) == pytest.approx(rows[method][1][:4], abs=0.005)
    old = torch.load(mbj_run / "last.pth.tar", weights_only=False)["state_dict"]
    new = torch.load(written, weights_only=True)["state_dict"]
    assert {key for key in old if not torch.equal(old[key], new[key])} <= {
        "fc.weight",
        "fc.bias",
    } and old.keys() == new.keys()


def test_the_features_are_those_of_images_without_augmentation(mbj_run):
    args = parser().parse_args([str(mbj_run)])
    run = FinishedRun(Path(args.run[0]), args)
    run.read_images(None)
    train_set, _ = datasets = build.make_datasets(run.args)
    build.make_loaders(run.args, run.model, datasets, torch.device("cpu"))
    train_set.transform = datasets[1].transform
    assert len(run.train.labels) == len(train_set) > 200
    with torch.no_grad():
        for i in (0, 100, len(train_set) - 1):
            image, label = train_set[i]
            features = run.model.forward_features(image[None])
            expected = run.model.forward_head(features, pre_logits=True)[0]
            torch.testing.assert_close(run.train.features[i], expected, atol=1e-5, rtol=1e-4)
            assert run.train.labels[i] == label


def test_each_classifier_is_its_formula_on_this_run(mbj_run):
    args = parser().parse_args([str(mbj_run), "--tau", "1.5", "--gamma", "0.1"])
    run = FinishedRun(Path(args.run[0]), args)
    run.read_images(None)
    saved = torch.load(mbj_run / "last.pth.tar", weights_only=False)
    weight, bias = saved["state_dict"]["fc.weight"], saved["state_dict"]["fc.bias"]
    counts = json.loads((mbj_run / "results.json").read_text())["class_counts"]
    memory = saved["task_state"]["mbj"]
    rows, labels = memory["feature.bank.slot_rows"][:-1], memory["feature.bank.slot_labels"][:-1]
    expected = {
        "as-trained": (weight, bias),
        "logit-adjustment": formulas.logit_adjusted(weight, bias, counts, 1.5),
        "multiplicative": formulas.multiplicatively_adjusted(weight, counts, 0.1),
        "tau-norm": formulas.tau_normalized(weight, 1.5),
        "class-mean": formulas.nearest_class_mean(run.train.features, run.train.labels),
        "retrained": formulas.retrained(rows[labels >= 0], labels[labels >= 0], weight, bias),
    }
    for method, (w, b) in expected.items():
        (new_weight, new_bias), _ = classifier(run, method, args)
        torch.testing.assert_close(new_weight, w, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(new_bias, b, rtol=1e-4, atol=1e-4)


def test_tau_is_chosen_by_the_mean_error_of_the_classes_of_the_split(mbj_run, capsys):
    rows, _ = printed(capsys, mbj_run, "--choose-on", "validation")
    args = parser().parse_args([str(mbj_run)])
    run = FinishedRun(Path(args.run[0]), args)
    run.read_images("validation")
    features, labels = run.validation.features, run.validation.labels
    assert len(labels) == 360 and len(run.evaluation.labels) == 359
    assert not torch.equal(features, run.evaluation.features)

    def mean_error(tau):
        weight, bias = formulas.logit_adjusted(run.weight, run.bias, run.counts.tolist(), tau)
        right = F.linear(features, weight, bias).argmax(1) == labels
        return np.mean([1 - right[labels == c].float().mean().item() for c in range(10)])

    chosen = rows["logit-adjustment"][0]
    assert chosen == min(np.arange(31) / 10, key=lambda tau: round(mean_error(tau), 9))
    assert rows["class-mean"][0] is None


def test_a_run_without_a_memory_has_no_retrained_line(digit_runs, capsys):
    rows, lines = printed(capsys, digit_runs / "baseline")
    assert tuple(rows) == METHODS[:-1]
    assert "retrained is left out: the checkpoint holds no memory of features (--mbj writes one)" in lines


def test_retraining_needs_no_image(mbj_run, capsys):
    settings = yaml.safe_load((mbj_run / "args.yaml").read_text())
    (mbj_run / "args.yaml").write_text(yaml.safe_dump(settings | {"dataset": "", "data_dir": "nowhere"}))
    rows, lines = printed(capsys, mbj_run, "--no-images", "--write", "retrained", "--output", mbj_run / "new.pth.tar")
    assert not rows and lines == [f"Written: {mbj_run / 'new.pth.tar'}"]
    (mbj_run / "args.yaml").write_text(yaml.safe_dump(settings))
    rows, _ = printed(capsys, mbj_run)
    assert stock_errors(mbj_run, mbj_run / "new.pth.tar") == pytest.approx(rows["retrained"][1][:4], abs=0.005)


def test_averaged_weights_are_the_ones_that_are_read(mbj_run):
    checkpoint = torch.load(mbj_run / "last.pth.tar", weights_only=False)
    average = {key: value.clone() for key, value in checkpoint["state_dict"].items()}
    average["fc.bias"] += 3
    torch.save(checkpoint | {"state_dict_ema": average}, mbj_run / "last.pth.tar")
    assert torch.equal(FinishedRun(mbj_run, parser().parse_args([str(mbj_run)])).bias, average["fc.bias"])


def test_two_heads_are_written_as_the_one_that_they_average_to(mbj_run):
    run = FinishedRun(mbj_run, parser().parse_args([str(mbj_run)]))
    run.layers = [torch.nn.Linear(3, 10), torch.nn.Linear(2, 10)]
    run.model = torch.nn.ModuleList(run.layers)
    weight, bias, x = torch.randn(10, 5), torch.randn(10), torch.randn(4, 5)
    run.write((weight, bias), mbj_run / "two.pth.tar")
    averaged = (run.layers[0](x[:, :3]) + run.layers[1](x[:, 3:])) / 2
    torch.testing.assert_close(averaged, F.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tau", "-1"], "--tau must be a finite number >= 0, got -1"),
        (["--gamma", "nan"], "--gamma must be a finite number >= 0, got nan"),
        (["--choose-on", "test"], "--choose-on test: the run was evaluated on that split"),
        (["--choose-on", "train"], "--choose-on train: the run was trained on that split"),
        (["--choose-on", "dev"], "got 'dev'"),
        (["--output", "x"], "--output is the file of --write"),
        (["--no-images"], "--no-images needs a --write that takes no image"),
        (["--no-images", "--write", "class-mean"], "--no-images needs a --write that takes no image"),
        (["--device", "abacus"], "--device abacus"),
        (["--write", "tau-norm", "--output", "nowhere/x.pth"], "cannot write nowhere/x.pth"),
    ],
)
def test_a_wrong_value_is_one_line(digit_runs, argv, said):
    with pytest.raises(SystemExit) as stopped:
        main([str(digit_runs / "mbj"), *argv])
    assert said in str(stopped.value) and "\n" not in str(stopped.value)
    assert str(stopped.value).startswith("after_training: error: ")


def test_a_folder_that_is_no_run_is_one_line(digit_runs, mbj_run, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(SystemExit, match="there is no"):
            main([str(path)])
    with pytest.raises(SystemExit, match="no memory of features"):
        main([str(digit_runs / "baseline"), "--write", "retrained"])
    (mbj_run / "results.json").unlink()
    with pytest.raises(SystemExit, match="--no-images takes the class counts from results.json: there is no"):
        main([str(mbj_run), "--no-images", "--write", "tau-norm"])
    for name in ("last.pth.tar", "model_best.pth.tar"):
        (mbj_run / name).write_bytes(b"cut")
    with pytest.raises(SystemExit, match="cannot read a checkpoint"):
        main([str(mbj_run)])


def test_a_model_without_a_plain_classifier_is_one_line(tmp_path):
    flags = ["--epochs", "1", "--decay-milestones", "1", "--warmup-epochs", "0", "--no-progress"]
    train.main(["--loss", "benchmarks.rivals.ldam:LDAMLoss", "--output", str(tmp_path), "--experiment", "run", *flags])
    with pytest.raises(SystemExit, match="cannot find the classifier"):
        main([str(tmp_path / "run")])


@pytest.mark.parametrize("scale", [2, 0.97])
def test_logits_that_are_no_plain_product_are_one_line(mbj_run, scale):
    run = FinishedRun(mbj_run, parser().parse_args([str(mbj_run)]))
    run.model.register_forward_hook(lambda module, args, logits: scale * logits)
    with pytest.raises(ValueError, match="are not what its classifier computes"):
        run.read_images(None)


def test_each_class_of_the_split_counts_the_same():
    labels = torch.tensor([0] * 9 + [1])
    features = torch.where(labels[:, None] == 0, -torch.arange(10.0)[:, None], -1.0)
    # At 2.5, three images of class 0 are lost for the only one of class 1.
    adjust = lambda tau: (torch.tensor([[-1.0], [0.0]]), torch.tensor([0.0, tau]))  # noqa: E731
    assert _best(adjust, np.array([0.0, 2.5]), Images(features, labels), 2) == 2.5
