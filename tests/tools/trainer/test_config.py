import re

import pytest
from test_args import refused

from benchmarks.classification.settings import load_settings
from mbj_plugin.timm.schedule import learning_rates, start_epoch
from mbj_plugin.tools.files import config_folder
from mbj_plugin.tools.trainer.args import parse_args

SHIPPED = sorted(path.stem for path in config_folder("timm").glob("*.yaml") if not path.stem.startswith("base"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_holds_flags_only(name):
    assert parse_args(["-c", name, "--mbj"]).config == name


@pytest.mark.parametrize("ratio", [100, 50, 10])
@pytest.mark.parametrize("classes", [10, 100])
def test_the_paper_s_cifar_recipe(classes, ratio):
    args = parse_args(["-c", f"cifar{classes}_lt{ratio}"])
    assert (args.dataset, args.num_classes, args.imbalance_ratio) == (f"torch/cifar{classes}", classes, ratio)
    assert (args.model, args.epochs, args.batch_size, args.lr) == ("resnet32_cifar", 200, 32, 0.1)
    assert (args.warmup_epochs, args.decay_milestones, args.decay_rate) == (5, [120, 160], 0.01)
    assert (args.opt, args.momentum, args.weight_decay) == ("momentum", 0.9, 2e-4)
    assert args.opt_kwargs == {"filter_bias_and_bn": False}
    assert (args.crop_pad, args.hflip, args.smoothing) == (4, 0.5, 0.0)
    assert (args.mbj_eta, args.mbj_size, args.mbj_beta) == (15, 500, 1.5)
    assert start_epoch("auto", args.sched, learning_rates(args, 10)) == 120


def test_the_paper_s_inaturalist_recipe():
    args = parse_args(["-c", "inat18", "--data-dir", "somewhere"])
    assert (args.model, args.epochs, args.batch_size, args.lr, args.num_classes) == ("resnet50", 180, 128, 0.01, 8142)
    assert (args.mbj_size, args.decay_milestones, args.decay_rate) == (25_000, [120, 160], 0.1)
    assert start_epoch("auto", args.sched, learning_rates(args, 10)) == 120


def test_command_line_over_config_over_base(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 7\nlr: 0.5\nbatch_size: 8\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nlr: 0.25\nmbj: true\n")
    args = parse_args(["-c", str(tmp_path / "leaf.yaml"), "-b", "4"])
    assert (args.epochs, args.lr, args.batch_size, args.mbj) == (7, 0.25, 4, True)


def test_switches_that_are_off(tmp_path):
    (tmp_path / "c.yaml").write_text("no_aug: false\nprogress: false\namp: true\n")
    args = parse_args(["-c", str(tmp_path / "c.yaml")])
    assert (args.no_aug, args.progress, args.amp) == (False, False, True)


def test_numbers_in_any_notation(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nweight_decay: 5E-4\nmean: [1e-1, 0.2, 3e-1]\n")
    args = parse_args(["-c", str(tmp_path / "c.yaml")])
    assert (args.lr, args.weight_decay, args.mean) == (1e-3, 5e-4, [0.1, 0.2, 0.3])


def test_the_paper_to_the_letter_yields_to_flags():
    args = parse_args(["--mbj", "--mbj-recipe", "paper", "--mbj-start", "auto"])
    assert (args.mbj_norm, args.mbj_start) == ("sum", "auto")


@pytest.mark.parametrize(
    ("recipe", "name", "start"),
    [("default", "mbj", "auto"), ("balanced", "balanced_softmax_own_mbj", "auto"), ("paper", "mbj_paper", 0)],
)
def test_the_recipes_are_methods_of_the_results_page(recipe, name, start):
    args = parse_args(["--mbj", "--mbj-recipe", recipe, "-c", "cifar10_lt100"])
    method = load_settings().methods[name]
    assert (args.loss, args.mbj_memory, args.mbj_eta) == (method.loss, method.memory, method.eta)
    assert (args.mbj_classifier, args.mbj_classifier_loss) == (method.classifier, method.classifier_loss)
    assert (args.mbj_beta, args.mbj_norm) == (method.beta, method.norm)
    assert args.mbj_start == start and method.start == {"auto": "decay", 0: 0}[start]


def test_without_a_data_set_the_digits_are_taken(tmp_path):
    assert parse_args([]).dataset == "sklearn/digits"
    assert parse_args([str(tmp_path)]).dataset == ""
    assert parse_args([str(tmp_path)]).data_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch: 7", "'epoch', did you mean 'epochs'"),
        ("5: 5", "unknown key 5"),
        ("data: x", "unknown key 'data'"),
        ("lr: fast", "--lr.*'fast'"),
        ("lr: [0.1]", "lr .*[0.1]"),
        ("lr: false", "lr .*False"),
        ("epochs: 1.5", "--epochs.*'1.5'"),
        (f"epochs: {10**30}", f"--epochs.*{10**30}"),
        (f"epochs: 1{'0' * 5000}", "config"),
        (f"a: {'[' * 800}", "config"),
        ("epochs:", "epochs .*None"),
        ("mbj: 'no'", "mbj .*'no'"),
        ("mbj:", "mbj .*None"),
        ("mbj_norm: typo", "--mbj-norm.*'typo'"),
        ("mbj_start: [1]", "mbj_start .*[1]"),
        ("mbj_start: 2026-01-01", "mbj_start .*2026"),
        ("model: {a: 1}", "model .*{'a': 1}"),
        ("model: yes", "--model"),
        ("opt_kwargs: 5", "opt_kwargs .*5"),
        ("decay_milestones: 5", "decay_milestones .*5"),
        ("decay_milestones: [1, null]", "--decay-milestones.*'None'"),
        ("mean: [0.5, a]", "--mean.*'a'"),
        ("_BASE_: values.yaml", "its own _BASE_"),
        ("_BASE_: 5", "no config .*5"),
        ("a: \x00", "cannot read the config"),
        ("a: [", "cannot read the config"),
        ("- 1", "mapping"),
        ("a: !!python/object/apply:os.getcwd []", "cannot read the config"),
    ],
    ids=lambda value: value[:30],
)
def test_bad_configs(text, named, tmp_path, capsys):
    (tmp_path / "values.yaml").write_text(text)
    said = refused(capsys, "-c", str(tmp_path / "values.yaml"))
    assert "values.yaml" in said or named.startswith(("--epochs", "no config"))
    assert re.search(named.replace("[", "\\["), said)
