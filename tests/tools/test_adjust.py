"""The command on real runs of train_timm: what it prints is true, and what it writes loads in stock timm."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml

from mbj_plugin import logit_adjustment as formulas
from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.adjust import METHODS, Adjustments, main, parser, table
from mbj_plugin.tools.finished_run import FinishedRun, Inputs, saved_args
from mbj_plugin.tools.trainer import build, train
from mbj_plugin.tools.trainer.data import check_same_classes

GROUPS = ("error", "head", "medium", "tail", "many_shot", "medium_shot", "few_shot")
SHORT = ["--epochs", "1", "--decay-milestones", "1", "--warmup-epochs", "0", "--no-progress"]


def printed(capsys, *argv):
    """Rows of the table: method to (tau or None, [error, head, medium, tail, many, medium, few]), and all lines."""
    main([str(each) for each in argv])
    lines = capsys.readouterr().out.splitlines()
    rows = {}
    for line in lines:
        cells = line.split()
        if cells and cells[0] in METHODS and "left out" not in line:
            numbers = [float("nan") if cell == "-" else float(cell) for cell in cells[1:]]
            rows[cells[0]] = (numbers[0] if len(numbers) == 8 else None, numbers[-7:])
    return rows, lines


def edit(path, **new):
    """Change settings in an args.yaml."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | new))


def adjustments(folder, *flags):
    args = parser().parse_args([str(folder), *flags])
    return Adjustments(FinishedRun(folder), args)


def stock_errors(folder, checkpoint):
    """[error, head, medium, tail] of a checkpoint that stock timm loads, counted image by image."""
    args = saved_args(folder)
    model = timm.create_model(args.model, num_classes=10, in_chans=1, checkpoint_path=str(checkpoint), depth=8)
    datasets = build.make_datasets(args)
    loaders = build.make_loaders(args, model, datasets, torch.device("cpu"))
    hits = {c: [] for c in range(10)}
    with torch.no_grad():
        for image, label in datasets[1]:
            hits[label].append(int(model.eval()(image[None])[0].argmax()) == label)
    groups = {"all": range(10)} | class_groups(loaders.counts)
    shares = [np.mean([hit for c in groups[name] for hit in hits[c]]) for name in ("all", "head", "medium", "tail")]
    return [100 * (1 - share) for share in shares]


def test_one_run_with_mbj_has_every_answer(digit_runs, capsys):
    """Its batch classifier is the baseline, and it is that one, not MBJ's, which is adjusted."""
    rows, _ = printed(capsys, digit_runs / "mbj")
    baseline, lines = printed(capsys, digit_runs / "baseline")
    assert tuple(rows) == METHODS
    for name, key in (("mbj", "mbj"), ("baseline", "batch")):
        results = json.loads((digit_runs / name / "results.json").read_text())["errors"]
        assert rows[key][1] == pytest.approx([results[group] for group in GROUPS], abs=0.005)
    assert [row[0] for row in rows.values()] == [None, 1, None, 1, None]
    alone = ("batch", "adjusted", "tau-norm", "class-mean")
    assert tuple(baseline) == alone and "mbj is left out: the run has no memory" in lines
    for name in alone:
        assert baseline[name] == rows[name]


def test_what_training_adjusted_is_taken_off(mbj_run, capsys):
    plain = adjustments(mbj_run, "--tau", "0.4").get("adjusted", True)[0]
    for settings, already in (({"loss": "balanced_softmax"}, 1), ({"sampler": "square-root"}, 0.5)):
        edit(mbj_run / "args.yaml", **settings)
        (_, bias), tau = adjustments(mbj_run, "--tau", str(already + 0.4)).get("adjusted", True)
        torch.testing.assert_close(bias.diff(), plain[1].diff())
        assert tau == already + 0.4
        edit(mbj_run / "args.yaml", loss="ce", sampler=None)
    edit(mbj_run / "args.yaml", loss="torch.nn:NLLLoss")
    rows = adjustments(mbj_run)
    assert rows.get("adjusted", False) is None and "--loss torch.nn:NLLLoss" in capsys.readouterr().out
    torch.testing.assert_close(adjustments(mbj_run, "--tau", "0.4").get("adjusted", True)[0], plain)


def test_a_shared_classifier_is_not_adjusted_again(mbj_run, capsys):
    checkpoint = torch.load(mbj_run / "last.pth.tar", weights_only=False)
    del checkpoint["task_state"]["batch_classifier"]
    torch.save(checkpoint, mbj_run / "last.pth.tar")
    rows, lines = printed(capsys, mbj_run)
    assert "batch" not in rows and "adjusted" not in rows and "mbj" in rows
    assert any("adjusted is left out" in line for line in lines)


def test_several_runs_have_a_mean_a_spread_and_a_difference():
    runs = [{"batch": ({"error": a}, None), "adjusted": ({"error": b, "head": 1.0}, tau)} for a, b, tau in
            ((10.0, 8.0, 1.0), (12.0, 9.0, 1.5), (14.0, 14.0, 1.5))]  # fmt: skip
    for style, begins in (("text", "adjusted"), ("markdown", "| adjusted"), ("latex", " adjusted")):
        (line,) = (line for line in table(runs, style).splitlines() if line.startswith(begins))
        for said in ("1, 1.5", "10.33 ± 3.21", "1.00 ± 0.00", "-1.67 ± 0.88"):  # of -2, -3, 0
            assert said in line
    assert table(runs[:2]).splitlines()[-1].endswith("-2.00, -3.00")
    assert "−" not in table(runs[:1])


@pytest.mark.parametrize("method", ["adjusted", "class-mean"])
def test_what_is_written_loads_in_stock_timm_and_makes_the_printed_errors(mbj_run, capsys, method):
    rows, lines = printed(capsys, mbj_run, "--write", method)
    written = mbj_run / f"{method}.pth.tar"
    assert lines[-1] == f"Written: {written}"
    assert stock_errors(mbj_run, written) == pytest.approx(rows[method][1][:4], abs=0.005)
    old = torch.load(mbj_run / "last.pth.tar", weights_only=False)["state_dict"]
    new = torch.load(written, weights_only=True)["state_dict"]
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed <= {"fc.weight", "fc.bias"} and old.keys() == new.keys()
    run = FinishedRun(mbj_run, images=False)
    for name in (written.name, "last.pth.tar"):
        with pytest.raises(ValueError, match=name):
            run.write(run.classifiers()["mbj"], mbj_run / name)


def test_each_classifier_is_its_formula_on_this_run(mbj_run):
    rows = adjustments(mbj_run, "--tau", "1.5")
    saved = torch.load(mbj_run / "last.pth.tar", weights_only=False)
    own = saved["state_dict"]["fc.weight"], saved["state_dict"]["fc.bias"]
    weight, bias = (saved["task_state"]["batch_classifier"][key] for key in ("0.weight", "0.bias"))
    counts = json.loads((mbj_run / "results.json").read_text())["class_counts"]
    expected = {
        "batch": (weight, bias),
        "mbj": own,
        "adjusted": formulas.logit_adjusted(weight, bias, counts, 1.5),
        "tau-norm": formulas.tau_normalized(weight, 1.5),
        "class-mean": formulas.nearest_class_mean(rows.training.features, rows.training.labels),
    }
    for method, (w, b) in expected.items():
        (new_weight, new_bias), _ = rows.get(method, True)
        torch.testing.assert_close(new_weight, w, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(new_bias - new_bias.mean(), b - b.mean(), rtol=1e-4, atol=1e-4)
    # Of the training images the features are those without augmentation.
    run = rows.run
    train_set = run.datasets[0]
    assert len(rows.training.labels) == len(train_set) > 200
    for i in (0, 100, len(train_set) - 1):
        image, label = train_set[i]
        features = run.model.forward_head(run.model.forward_features(image[None]), pre_logits=True)[0]
        torch.testing.assert_close(rows.training.features[i], features.detach(), atol=1e-5, rtol=1e-4)
        assert rows.training.labels[i] == label


def test_tau_is_chosen_by_the_mean_error_of_the_classes_of_the_split(mbj_run, capsys):
    rows, _ = printed(capsys, mbj_run, "--choose-on", "validation")
    images = adjustments(mbj_run, "--choose-on", "validation")
    features, labels = images.validation.features, images.validation.labels
    assert len(labels) == 360 and len(images.evaluation.labels) == 359
    assert images.validation.shares(images.evaluation) < 0.01

    def mean_error(tau):
        weight, bias = formulas.logit_adjusted(*images.trained["batch"], images.run.counts.tolist(), tau)
        right = F.linear(features, weight, bias).argmax(1) == labels
        return np.mean([1 - right[labels == c].float().mean().item() for c in range(10)])

    chosen = rows["adjusted"][0]
    assert chosen == min(np.arange(31) / 10, key=lambda tau: round(mean_error(tau), 9))
    assert rows["class-mean"][0] is None


def test_it_is_the_images_that_must_be_others_not_the_names(digit_runs, tmp_path, image_folder):
    for split, kind in (("test", "evaluated"), ("train", "trained")):
        with pytest.raises(SystemExit, match=f"--choose-on {split}: .*{kind} on"):
            main([str(digit_runs / "mbj"), "--choose-on", split])
    flags = "-c digits --val-split validation --imbalance-ratio 1 -b 4 -j 0"
    flags += " --input-size 3 16 16 --mean .5 .5 .5 --std .2 .2 .2"
    images = shutil.copytree(image_folder, tmp_path / "images")
    for path in images.glob("train/*/0.png"):  # few images, most of which it was trained on
        (images / "few" / path.parent.name).mkdir(parents=True)
        shutil.copy(path, images / "few" / path.parent.name)
    places = ["--data-dir", str(images), "--dataset", "", "--output", str(tmp_path), "--experiment", "run"]
    train.main([*flags.split(), *SHORT, *places])
    with pytest.raises(SystemExit, match="--choose-on few: .*trained on"):
        main([str(tmp_path / "run"), "--choose-on", "few"])
    with pytest.raises(SystemExit, match="--choose-on val: .*evaluated on 100 %"):  # timm's other name of the folder
        main([str(tmp_path / "run"), "--choose-on", "val"])


def test_a_target_mix_is_adjusted_to_and_measured_in(mbj_run, tmp_path, capsys):
    target = np.array([10, 1, 1, 1, 1, 1, 1, 1, 1, 30])
    (tmp_path / "mix.json").write_text(json.dumps(target.tolist()))
    flags = ("--target-prior", str(tmp_path / "mix.json"))
    rows = adjustments(mbj_run, *flags)
    (_, bias), _ = rows.get("adjusted", True)
    batch, counts = rows.trained["batch"], rows.run.counts
    expected = batch[1] - torch.tensor(counts).log() + torch.tensor(target).log()
    torch.testing.assert_close(bias.diff(), expected.float().diff(), rtol=1e-4, atol=1e-4)
    images, wrong = rows.evaluation.wrong(batch, 10)
    assert rows.errors(batch)["target"] == pytest.approx(100 * (target * wrong / images).sum() / target.sum())
    (tmp_path / "mix.json").write_text("[1, 0]")
    with pytest.raises(SystemExit, match=r"mix\.json needs 10 numbers"):
        main([str(mbj_run), *flags])


def test_each_class_of_the_split_counts_the_same(mbj_run):
    rows = adjustments(mbj_run)
    rows.run.counts, rows.target = np.array([9, 1]), np.ones(2)
    labels = torch.tensor([0] * 9 + [1])
    features = torch.where(labels[:, None] == 0, -torch.arange(10.0)[:, None], -1.0)
    # Above 1, two images of class 0 are lost for the only one of class 1.
    adjust = lambda tau: (torch.tensor([[-1.0], [0.0]]), torch.tensor([0.0, tau]))  # noqa: E731
    assert rows.best(adjust, Inputs(features, labels, [])) == 1.1
    rows.target = np.array([9.0, 1.0])  # by images, the two count for more
    assert rows.best(adjust, Inputs(features, labels, [])) == 0


def test_results_json_alone_gives_the_counts(mbj_run):
    edit(mbj_run / "args.yaml", dataset="", data_dir="nowhere")
    run = FinishedRun(mbj_run, images=False)
    assert run.counts.tolist() == json.loads((mbj_run / "results.json").read_text())["class_counts"]
    (mbj_run / "results.json").unlink()
    with pytest.raises(ValueError, match=r"results\.json"):
        FinishedRun(mbj_run, images=False)


def test_averaged_weights_are_the_ones_that_are_read(mbj_run):
    checkpoint = torch.load(mbj_run / "last.pth.tar", weights_only=False)
    average = {key: value.clone() for key, value in checkpoint["state_dict"].items()}
    average["fc.bias"] += 3
    batch = {key: value + 5 for key, value in checkpoint["task_state"]["batch_classifier"].items()}
    averages = {"state_dict_ema": average, "task_state_ema": {"batch_classifier": batch}}
    torch.save(checkpoint | averages, mbj_run / "last.pth.tar")
    run = FinishedRun(mbj_run)
    trained = run.classifiers()
    assert torch.equal(trained["mbj"][1], average["fc.bias"]) and torch.equal(trained["batch"][1], batch["0.bias"])
    assert torch.equal(run.model.fc.bias, average["fc.bias"])  # looking leaves the model as it was


def test_two_heads_are_written_as_the_one_that_they_average_to(mbj_run, monkeypatch):
    run = FinishedRun(mbj_run)
    layers = [torch.nn.Linear(3, 10), torch.nn.Linear(2, 10)]
    monkeypatch.setattr("mbj_plugin.tools.finished_run.classifier_layers", lambda model: layers)
    weight, bias, x = torch.randn(10, 5), torch.randn(10), torch.randn(4, 5)
    run.put((weight, bias))
    averaged = (layers[0](x[:, :3]) + layers[1](x[:, 3:])) / 2
    torch.testing.assert_close(averaged, F.linear(x, weight, bias))


@pytest.mark.parametrize("scale", [2, 0.97])
def test_logits_that_are_no_plain_product_are_an_error(mbj_run, scale):
    run = FinishedRun(mbj_run)
    run.model.register_forward_hook(lambda module, args, logits: scale * logits)
    with pytest.raises(ValueError, match="are not what its classifier computes"):
        run.read_evaluation()


def test_a_run_that_is_not_what_it_seems_is_said(mbj_run, capsys):
    edit(mbj_run / "args.yaml", epochs=20)
    _, lines = printed(capsys, mbj_run)
    assert lines[0].endswith("epoch 6 of 20")
    checkpoint = torch.load(mbj_run / "last.pth.tar", weights_only=False)
    checkpoint["data"]["class_names"][3] = "drei"
    torch.save(checkpoint, mbj_run / "last.pth.tar")
    with pytest.raises(SystemExit, match=r"'drei', here 'digit 3'.*--data"):
        main([str(mbj_run)])
    checkpoint["state_dict"]["conv1.weight"][0] = float("nan")
    torch.save(checkpoint, mbj_run / "last.pth.tar")
    with pytest.raises(SystemExit, match=r"diverged, conv1\.weight"):
        main([str(mbj_run)])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tau", "-1"], "--tau must be a number from 0 to 100, got -1"),
        (["--tau", "nan"], "--tau must be a number from 0 to 100, got nan"),
        (["--tau", "1e300"], "--tau must be a number from 0 to 100, got 1e+300"),
        (["--device", "banana"], "--device banana: torch knows no such device"),
        (["--choose-on", "dev"], "got 'dev'"),
        (["--output", "x"], "--output is the file of --write"),
        (["--write", "tau-norm", "--output", "nowhere/x.pth"], "cannot write nowhere/x.pth"),
    ],
)
def test_a_wrong_value_is_one_line(digit_runs, argv, said):
    with pytest.raises(SystemExit) as stopped:
        main([str(digit_runs / "mbj"), *argv])
    assert said in str(stopped.value) and "\n" not in str(stopped.value)


def test_a_folder_that_is_no_run_is_one_line(digit_runs, mbj_run, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(SystemExit, match="there is no"):
            main([str(path)])
    with pytest.raises(SystemExit, match="the run has no memory"):
        main([str(digit_runs / "baseline"), "--write", "mbj"])
    with pytest.raises(SystemExit, match="a run is given twice"):
        main([str(mbj_run), str(mbj_run)])
    with pytest.raises(SystemExit, match="got 2"):
        main([str(digit_runs / "mbj"), str(mbj_run), "--write", "tau-norm"])
    for name in ("last.pth.tar", "model_best.pth.tar"):
        (mbj_run / name).write_bytes(b"cut")
    with pytest.raises(SystemExit, match="cannot read"):
        main([str(mbj_run)])


def test_a_model_without_a_plain_classifier_is_one_line(tmp_path):
    train.main(["--loss", "benchmarks.rivals.ldam:LDAMLoss", "--output", str(tmp_path), "--experiment", "run", *SHORT])
    with pytest.raises(SystemExit, match="cannot find the classifier"):
        main([str(tmp_path / "run")])


def test_splits_that_number_their_classes_differently_are_an_error():
    splits = [SimpleNamespace(class_to_idx=numbers) for numbers in ({"a": 0, "b": 1}, {"a": 1, "b": 0})]
    with pytest.raises(ValueError, match="class 'a' has the number 0 in training and the number 1 in evaluation"):
        check_same_classes(*splits)
