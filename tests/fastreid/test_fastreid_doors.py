"""The ways in: launcher, own training command, import line; with and without spawned ranks."""

import pytest
import torch

from mbj_plugin.tools.fastreid import train


def memory_of(folder):
    state = torch.load(folder / "model_final.pth")["model"]
    return {name: value for name, value in state.items() if ".memories." in name}


@pytest.fixture
def arguments(script, tiny_opts, tmp_path):
    """Arguments of a tiny run into ``tmp_path / "out"``, without the script."""
    return ["--config-file", tmp_path / "config.yml", *tiny_opts, "OUTPUT_DIR", tmp_path / "out"]


def test_spawned_ranks_come_up_with_the_plugin_and_remember_the_same(command, script, arguments, tmp_path):
    # Each rank writes its own memory down when the training is over.
    text = script.read_text().replace(
        "    return trainer.train()\n",
        "    results = trainer.train()\n"
        "    import torch\n"
        "    from fastreid.utils import comm\n"
        "    state = trainer._trainer.model.module.state_dict()\n"
        "    torch.save(state, f'{cfg.OUTPUT_DIR}/rank{comm.get_rank()}.pth')\n"
        "    return results\n",
    )
    script.write_text(text)
    more = ["MODEL.MBJ.MEMORY", "both", "MODEL.MBJ.NORM", "max", "SOLVER.CHECKPOINT_PERIOD", "1"]
    launch = ["-m", "mbj_plugin.fastreid.launch", script]
    command(*launch, "--num-gpus", 2, *arguments, *more, cwd=tmp_path)
    first, second = (torch.load(tmp_path / "out" / f"rank{rank}.pth") for rank in (0, 1))
    names = [name for name in first if ".memories." in name]
    assert any("feature" in name for name in names) and any("prototype" in name for name in names)
    assert all(torch.equal(first[name], second[name]) for name in [*names, "heads.weight"])
    assert (first["heads.memories.prototype.bank.slot_labels"] >= 0).any()
    # Two ranks saved it, one goes on with it.
    one = [
        value if value != "1" or arguments[i - 1] != "SOLVER.MAX_EPOCH" else "2" for i, value in enumerate(arguments)
    ]
    alone = script.with_name("alone.py")
    alone.write_text(text.replace("model.module.state_dict", "model.state_dict"))
    result = command("-m", "mbj_plugin.fastreid.launch", alone, "--resume", *one, *more, cwd=tmp_path)
    assert all(said in result.stdout for said in ("Starting training from epoch 1", "loss_mbj:", "mAP"))
    assert memory_of(tmp_path / "out")["heads.memories.prototype.step"] == 18


def test_own_training_command(arguments, tmp_path, data_root, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(data_root))
    results: list[dict] = []
    monkeypatch.setattr(train, "launch", lambda main, *_, args, **__: results.append(main(*args)))
    train.main(list(map(str, arguments)))
    assert memory_of(tmp_path / "out")
    weights = ["MODEL.WEIGHTS", tmp_path / "out" / "model_final.pth", "MODEL.HEADS.NUM_CLASSES", 24]
    train.main(list(map(str, ["--eval-only", *arguments, *weights])))
    assert results[0]["mAP"] == pytest.approx(results[1]["mAP"]) and results[0]["mAP"] > 0


def test_own_training_command_lists_its_configs(capsys):
    with pytest.raises(SystemExit):
        train.main(["--config-file", "nothing.yml"])
    assert "Market1501_LT_H20_S5-MBJ, " in capsys.readouterr().err
