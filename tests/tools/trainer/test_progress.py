"""Time left, by a clock of our own."""

from mbj_plugin.tools.trainer.progress import Progress


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
