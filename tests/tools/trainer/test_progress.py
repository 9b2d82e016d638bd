"""Time left, by a clock of our own, and what a command says of it."""

import re

from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.progress import Progress

PAIRS = [(seed, method) for seed in (42, 43) for method in ("mbj", "baseline")]


def test_one_run():
    now = [100.0]
    progress = Progress(clock=lambda: now[0])
    progress.begin(0, 10)
    assert progress.run == "" and progress.bar(0) == "epoch 0/9"
    now[0] += 20  # for two epochs, so 80 for the eight that are left
    assert progress.bar(2) == "epoch 2/9  01:20 left"
    now[0] += 30
    assert progress.left(10) == "took 00:50"
    progress = Progress(clock=lambda: now[0])
    progress.begin(6, 10)  # resumed
    now[0] += 2000
    assert progress.left(7) == "1:40:00 left"


def test_several_runs():
    now = [0.0]
    progress = Progress(["mbj, seed 1", "baseline, seed 1", "mbj, seed 2", "baseline, seed 2"], lambda: now[0])
    progress.begin(0, 2)
    now[0] += 10
    assert progress.run == "run 1/4 (mbj, seed 1)"
    assert progress.left(1) == "00:10 left, 01:10 left of all runs"  # this one's 20, and three times 20
    now[0] += 10
    assert progress.left(2) == "took 00:20, 01:00 left of all runs"
    now[0] += 6  # between the runs
    progress.begin(0, 2)
    now[0] += 7  # 7 + 2 * (26 + 14) / 2
    assert progress.bar(1) == "run 2/4 (baseline, seed 1)  epoch 1/1  00:07 left, 00:47 left of all runs"
    now[0] += 7
    progress.begin(0, 2)
    now[0] += 10
    progress.begin(0, 2)
    now[0] += 5
    assert progress.left(1) == "00:05 left"  # the last


def test_the_command_says_it(tmp_path, tiny, caplog, capsys):
    caplog.set_level("INFO", logger="mbj_plugin")
    two = ["--epochs", "2", "--mbj", "--mbj-classifier", "shared", "--compare", "--seeds", "2", "--table", "latex"]
    trainer.main([*tiny, *two, "--output", str(tmp_path), "--experiment", "e"])
    runs = [line.split(": ")[0] for line in caplog.messages if line.startswith("run ")]
    assert runs == [f"run {i}/4 ({method}, seed {seed})" for i, (seed, method) in enumerate(PAIRS, 1)]
    ends = [
        re.search(r"tail [\d./ ]+  (took|[\d:]+ left)", line)[1] for line in caplog.messages if line.startswith("epoch")
    ]
    assert [end == "took" for end in ends] == [False, True] * 4
    of_all = ["left of all runs" in line for line in caplog.messages if line.startswith("epoch")]
    assert of_all == [True] * 6 + [False] * 2
    table = capsys.readouterr().out
    assert table.startswith("% Test error") and table.splitlines()[5].count("±") == 7
