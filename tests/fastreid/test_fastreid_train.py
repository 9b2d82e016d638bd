"""Whole runs: what is written, what a checkpoint holds, how a killed run goes on, and where checkpoints do not fit."""

import json
from pathlib import Path

import pytest
import torch
from fastreid.engine.hooks import CallbackHook
from fastreid.utils.checkpoint import Checkpointer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.tools.fastreid import train

MAX = ("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64)
SCALARS = ("loss_mbj", "mbj/prototype/fill", "mbj/prototype/coverage")


def memory_state(model):
    return {name: value for name, value in model.state_dict().items() if ".memories." in name}


@pytest.mark.parametrize("solver", [("SOLVER.WARMUP_ITERS", 10), ("SOLVER.DELAY_EPOCHS", 1)])
def test_auto_starts_at_the_first_decay_of_the_real_schedule(make_trainer, solver):
    opts = ("MODEL.MBJ.START", "auto", "SOLVER.MAX_EPOCH", 4, "SOLVER.STEPS", [2], "TEST.EVAL_PERIOD", 4)
    trainer = make_trainer(*MAX, *opts, *solver)
    rates, losses = [], []
    write = trainer._trainer._write_metrics
    trainer._trainer._write_metrics = lambda losses_, seconds: (losses.append(losses_), write(losses_, seconds))
    trainer.register_hooks([CallbackHook(before_step=lambda t: rates.append(t.optimizer.param_groups[0]["lr"]))])
    trainer.train()
    first_decay = next(i for i in range(1, len(rates)) if rates[i] < rates[i - 1])
    assert mbj_heads(trainer.model)[0].memories["prototype"].start == first_decay
    assert not any(loss["loss_mbj"] for loss in losses[:first_decay]) and losses[first_decay]["loss_mbj"] > 0


def test_a_run_is_written_down_and_gone_on_with(make_trainer, tmp_path):
    first, out = make_trainer(*MAX), tmp_path / "out"
    assert {"mAP", "Rank-1"} <= set(first.train())
    written = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any(set(SCALARS) <= set(line) for line in written)
    events = EventAccumulator(str(out))
    events.Reload()
    assert set(SCALARS) <= set(events.Tags()["scalars"])
    again = make_trainer(*MAX, "SOLVER.MAX_EPOCH", 3)
    assert mbj_heads(again.model)[0].memories["prototype"].bank.filled == 0
    again.resume_or_load(resume=True)
    assert again.start_epoch == 2
    restored = memory_state(again.model)
    assert restored and all(torch.equal(value, restored[name]) for name, value in memory_state(first.model).items())
    again.train()
    assert mbj_heads(again.model)[0].memories["prototype"].step == 27


def test_start_is_an_iteration_of_the_run_also_where_the_memory_came_later(make_trainer):
    make_trainer("MODEL.HEADS.NAME", "EmbeddingHead").train()
    later = make_trainer(*MAX, "SOLVER.MAX_EPOCH", 3, "MODEL.MBJ.START", 0.75, "MODEL.MBJ.MOMENTUM", 0.5)
    later.resume_or_load(resume=True)
    losses, inner = [], later._trainer
    write = inner._write_metrics
    inner._write_metrics = lambda losses_, seconds: (losses.append(losses_["loss_mbj"].item()), write(losses_, seconds))
    later.train()
    first = 20  # of 27
    assert later.start_epoch == 2 and not any(losses[: first - 18]) and all(losses[first - 18 + 1 :])
    memory = mbj_heads(later.model)[0].memories["prototype"]
    assert memory.step == 9 and memory.momentum_weight.norm() > 0.5 * later.model.heads.weight.norm()


def test_start_is_an_iteration_of_the_run_also_where_batches_have_grown(make_trainer):
    """18 iterations of 8 images each, then 4 an epoch of 16: the third epoch begins at iteration 8 of such a run."""
    make_trainer(*MAX).train()
    options = ("SOLVER.MAX_EPOCH", 4, "SOLVER.IMS_PER_BATCH", 16, "MODEL.MBJ.START", 10)
    later = make_trainer(*MAX, *options)
    later.resume_or_load(resume=True)
    losses, inner = [], later._trainer
    write = inner._write_metrics
    inner._write_metrics = lambda losses_, seconds: (losses.append(losses_["loss_mbj"].item()), write(losses_, seconds))
    later.train()
    assert later.start_epoch == 2 and len(losses) == 8 and not any(losses[:2]) and all(losses[2:])


def test_an_interrupted_run_is_the_uninterrupted_one(make_trainer, steps, monkeypatch):
    """Same batches in, same weights and memory out, whether or not a checkpoint lies between."""
    opts = (*MAX, "MODEL.MBJ.MEMORY", "both", "MODEL.MBJ.MOMENTUM", 0.5)
    whole, first = make_trainer(*opts), make_trainer(*opts)
    batches = [next(whole._trainer._data_loader_iter) for _ in range(10)]
    copies = [{key: value.clone() if torch.is_tensor(value) else value for key, value in b.items()} for b in batches]
    whole._trainer._data_loader_iter = iter(batches)
    steps(whole, 10)
    first._trainer._data_loader_iter = iter(copies[:5])
    steps(first, 5)
    first.checkpointer.save("half", epoch=0)
    second = make_trainer(*opts)
    second.resume_or_load(resume=True)
    second._trainer._data_loader_iter = iter(copies[5:])
    steps(second, 5)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_checkpoints_go_both_ways_between_the_heads(make_trainer, tmp_path):
    plain = make_trainer("MODEL.HEADS.NAME", "EmbeddingHead")
    mbj = make_trainer(*MAX)
    for model in (plain.model, mbj.model):
        torch.nn.init.normal_(model.heads.weight)
    for source, target in ((plain.model, mbj.model), (mbj.model, plain.model)):
        torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
        Checkpointer(target).load(str(tmp_path / "weights.pth"))
        assert torch.equal(source.heads.weight, target.heads.weight)


def test_checkpoints_that_do_not_fit(make_trainer, steps):
    """The kinds of misfit are in test_fastreid_checkpoint."""
    first = make_trainer(*MAX)
    steps(first, 4)
    first.checkpointer.save("last", epoch=0)
    other = (*MAX, "MODEL.MBJ.SIZE", 32, "MODEL.HEADS.EMBEDDING_DIM", 12)
    with pytest.raises(ValueError, match=r"cannot resume: .*slot_rows has shape"):
        make_trainer(*other).resume_or_load(resume=True)
    # As weights to start from it is welcome, and the memory starts empty.
    fresh = make_trainer(*other, "MODEL.WEIGHTS", str(Path(first.cfg.OUTPUT_DIR) / "last.pth"))
    fresh.resume_or_load(resume=False)
    bank = mbj_heads(fresh.model)[0].memories["prototype"].bank
    assert bank.filled == 0 and bank.cursor == 0
    assert torch.equal(fresh.model.backbone[0].weight, first.model.backbone[0].weight)
    assert "loss_mbj" in steps(fresh, 2)[-1]


def test_the_table_pairs_the_seeds():
    """Counted by hand: differences 1, 2 and 3, so 2.0 with a standard error of 1 / sqrt(3)."""
    runs = {"baseline": [{"mAP": v} for v in (10.0, 20.0, 30.0)], "MBJ": [{"mAP": v} for v in (11.0, 22.0, 33.0)]}
    assert " ".join(train.table(runs).splitlines()[2].split()) == "mAP 20.00 ± 10.00 22.00 ± 11.00 +2.00 ± 0.58"
    two = train.table({name: scores[:2] for name, scores in runs.items()}).splitlines()
    assert " ".join(two[2].split()) == "mAP 15.00 ± 7.07 16.50 ± 7.78 +1.00, +2.00" and two[-1] == "2 seeds"
    assert train.table({"MBJ": runs["MBJ"][:1]}).splitlines()[2].split() == ["mAP", "11.00"]


def test_a_series_is_paired_and_gone_on_with(make_cfg, tmp_path, capsys, monkeypatch):
    """By the command: equal seeds, finished runs are read, an open one is resumed, other settings are refused."""
    (tmp_path / "a.yml").write_text(make_cfg("MODEL.MBJ.ETA", 0.0).dump())
    out = tmp_path / "out"
    arguments = ["--config-file", str(tmp_path / "a.yml"), "--compare", "--seeds", "2", "--seed", "4"]
    train.main(arguments)
    assert {path.name for path in out.iterdir()} == {f"{arm}-seed{s}" for arm in ("baseline", "MBJ") for s in (4, 5)}
    # Without eta both are the same run, and with another seed another.
    model = {path.parent.name: torch.load(path)["model"] for path in out.glob("*/model_final.pth")}
    weight = "backbone.0.weight"
    assert torch.equal(model["baseline-seed4"][weight], model["MBJ-seed4"][weight])
    assert not torch.equal(model["MBJ-seed4"][weight], model["MBJ-seed5"][weight])
    shown = capsys.readouterr().out.splitlines()[-6:]
    (out / "MBJ-seed5/model_final.pth").unlink()
    (out / "MBJ-seed5/last_checkpoint").write_text("model_0000.pth")
    begun = []
    monkeypatch.setattr(train, "launch", lambda main, *_, args, **__: begun.append((args[0].opts[-1], main(*args))))
    train.main(arguments)
    assert [folder for folder, _ in begun] == [str(out / "MBJ-seed5")]
    assert capsys.readouterr().out.splitlines()[-4].split()[:4] == shown[-4].split()[:4]
    with pytest.raises(SystemExit, match="^mbj train-fastreid: error: .*SOLVER.BASE_LR .* now 0.5"):
        train.main([*arguments, "SOLVER.BASE_LR", "0.5"])
