"""A run comes back in stock timm from a local folder, with a card that says what it is."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from mbj_plugin.logit_adjustment import logit_adjusted
from mbj_plugin.tools import hub
from mbj_plugin.tools.finished_run import FinishedRun, saved_args
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args

FLAGS = ["-b", "6", "-j", "0", "--input-size", "3", "16", "16", "--epochs", "1", "--warmup-epochs", "0", "--lr", "0.02"]
MEAN = ["--mean", "0.3", "0.4", "0.5", "--gp", "max"]


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory):
    """Folder of a finished run of one of timm's smallest models, whose average is evaluated."""
    output = tmp_path_factory.mktemp("runs")
    flags = [*FLAGS, *MEAN, "--model", "test_resnet", "--mbj", "--mbj-start", "0", "--model-ema", "--no-progress"]
    trainer.train(parse_args([str(image_folder), *flags, "--output", str(output), "--experiment", "run"]))
    return output / "run"


def test_a_run_comes_back_in_stock_timm(run, tmp_path, capsys):
    folder = tmp_path / "model"
    hub.main([str(run), str(folder)])
    assert capsys.readouterr().out == f'Written: timm.create_model("local-dir:{folder}", pretrained=True) loads it\n'
    images = torch.randn(2, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import json, sys, timm, torch;"
        "model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval();"
        "assert not any(name.startswith('mbj_plugin') for name in sys.modules);"
        "logits = model(torch.load(sys.argv[2]));"
        "config = timm.data.resolve_data_config({}, model=model);"
        "torch.save({'logits': logits, 'mean': config['mean'], 'size': config['input_size'],"
        " 'names': model.pretrained_cfg['label_names']}, sys.argv[3])"
    )
    paths = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "back.pt")]
    # One thread, as here: sums in the same order.
    alone = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *paths], check=True, env=alone)
    back = torch.load(paths[2])
    checkpoint = torch.load(run / "last.pth.tar", weights_only=False)
    model = build.make_model(saved_args(run), torch.device("cpu")).eval()
    model.load_state_dict(checkpoint["state_dict_ema"])
    torch.testing.assert_close(back["logits"], model(images), rtol=0, atol=0)
    assert tuple(back["mean"]) == (0.3, 0.4, 0.5) and tuple(back["size"]) == (3, 16, 16)
    assert back["names"] == ["class0", "class1", "class2"]


def test_the_card_names_data_errors_and_settings(run, image_folder, tmp_path):
    hub.write_folder(run, tmp_path / "model", "mit")
    card = (tmp_path / "model/README.md").read_text()
    errors = json.loads((run / "results.json").read_text())["errors"]
    assert card.startswith("---\nlibrary_name: timm\nlicense: mit") and "# model" in card
    assert f"Data: {image_folder.name}, split train: 42 images, 24 of the largest class, 6 of the smallest" in card
    cells = [f"{errors[name]:.2f}" if name in errors else "-" for name in ("error", "head", "medium", "tail")]
    row = next(line for line in card.splitlines() if line.startswith("| the memory classifier of Memory"))
    assert row.replace(" ", "").split("|")[2:6] == cells
    assert "beta 1.5" in card and "mbj_start 0" in card and "model test_resnet" in card and "timm " in card
    assert str(image_folder.parent) not in card  # whose machine it was is nobody's business
    assert 'timm.create_model("local-dir:model", pretrained=True)' in card and "import mbj_plugin" not in card
    # Nothing of the weights that timm has for this architecture, and that the run did not start from.
    config = (tmp_path / "model/config.json").read_text()
    assert "r160_in1k" not in config and "apache" not in config and "timm/" not in config


@pytest.mark.parametrize("classifier", hub.CLASSIFIERS)
def test_any_of_the_runs_classifiers_is_exported(run, tmp_path, classifier):
    hub.write_folder(run, tmp_path / "model", classifier=classifier)
    finished = FinishedRun(run, images=False)
    trained = finished.classifiers()
    trained["adjusted"] = logit_adjusted(*trained["batch"], finished.counts.tolist())
    with safe_open(tmp_path / "model/model.safetensors", "pt") as file:
        weight, bias = file.get_tensor("fc.weight"), file.get_tensor("fc.bias")
    assert torch.equal(weight, trained[classifier][0]) and torch.equal(bias, trained[classifier][1])
    assert not torch.equal(trained["mbj"][0], trained["batch"][0])
    assert hub.CLASSIFIERS[classifier][1] + "." in (tmp_path / "model/README.md").read_text()


def test_an_architecture_of_ours_is_said(tmp_path, tiny, capsys):
    trainer.train(parse_args([*tiny, "--epochs", "1", "--output", str(tmp_path), "--experiment", "run"]))
    hub.main([str(tmp_path / "run"), str(tmp_path / "model")])
    assert "after import mbj_plugin.timm, which registers resnet32_cifar" in capsys.readouterr().out
    card = (tmp_path / "model/README.md").read_text()
    assert "import mbj_plugin.timm  # registers" in card and "is the batch classifier" in card
    assert "sklearn/digits, split train" in card
    assert "this run has batch" in fails(tmp_path / "run", tmp_path / "new", "--classifier", "mbj")


def test_the_model_is_made_as_the_run_made_it():
    """timm >= 1.0.31 records these by itself, older ones take them from us."""
    flags = "--model resnet18 --gp max --bn-eps 0.1 --in-chans 1 --model-kwargs stem_width=8 --drop 0.5"
    args = parse_args(["DATA", *flags.split()])
    assert hub._model_args(args) == {"stem_width": 8, "global_pool": "max", "bn_eps": 0.1, "in_chans": 1}


def fails(*argv):
    with pytest.raises(SystemExit) as error:
        hub.main([str(part) for part in argv])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_input(run, tmp_path):
    assert "there is no " in fails(tmp_path, tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/file").touch()
    assert "model holds files already" in fails(run, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["file"]
    broken, new = shutil.copytree(run, tmp_path / "broken"), tmp_path / "new"
    args = (broken / "args.yaml").read_text()
    (broken / "args.yaml").write_text(args.replace("epochs: 1\n", "epochs: 2\n"))
    assert "epoch 1 of 2" in fails(broken, new)
    (broken / "args.yaml").write_text(args)
    checkpoint = torch.load(broken / "last.pth.tar", weights_only=False)
    checkpoint["state_dict_ema"]["fc.bias"][0] = float("inf")
    torch.save(checkpoint, broken / "last.pth.tar")
    assert "diverged, fc.bias" in fails(broken, new)
    (broken / "last.pth.tar").write_bytes(b"half")
    assert "last.pth.tar" in fails(broken, new)
    (broken / "results.json").write_text("{")
    assert "results.json is cut short" in fails(broken, new)
    (broken / "results.json").write_bytes(b"\x00\xff")
    assert "results.json is cut short" in fails(broken, new)
    assert not new.exists()
