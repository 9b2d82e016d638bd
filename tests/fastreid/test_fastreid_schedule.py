"""When the learning rate first falls, and where the memory loss starts."""

import re

import pytest
from test_fastreid_config import merged

from mbj_plugin.fastreid.schedule import Schedule


def test_the_schedule_of_a_config():
    solver = {"SCHED": "CosineAnnealingLR", "STEPS": [30, 55], "MAX_EPOCH": 61, "DELAY_EPOCHS": 2}
    solver |= {"WARMUP_ITERS": 7, "IMS_PER_BATCH": 12}
    cfg = merged(*[each for key, value in solver.items() for each in (f"SOLVER.{key}", value)])
    assert Schedule.from_config(cfg) == Schedule("CosineAnnealingLR", (30, 55), 61, 2, 7, 12)


@pytest.mark.parametrize(
    ("solver", "start", "iteration"),
    [
        ({}, "auto", 400),
        ({}, 0.25, 300),
        ({}, 17, 17),
        ({"warmup_iters": 25}, "auto", 420),  # the epochs of warm-up do not advance the schedule
        ({"delay_epochs": 10}, "auto", 500),
        ({"name": "CosineAnnealingLR", "delay_epochs": 19}, "auto", 695),
        ({"steps": ()}, "auto", 720),  # no decay: 60 % of the run, with a warning
        ({"max_epoch": 20}, "auto", 120),
        ({"max_epoch": 40}, "auto", 240),  # a decay at the end of the run comes too late
        ({"steps": (70, 40)}, "auto", 400),
        ({"warmup_iters": 10}, "auto", 400),  # the first epoch always advances it
        ({"warmup_iters": 11}, "auto", 410),
        ({"name": "CosineAnnealingLR"}, "auto", 600),
        ({}, 0, 0),
        ({}, 0.9999, 1199),
    ],
)
def test_start(solver, start, iteration):
    values = {"name": "MultiStepLR", "steps": (40, 70), "max_epoch": 120, "delay_epochs": 0, "warmup_iters": 0}
    schedule = Schedule(**{**values, **solver}, batch_size=64)
    assert schedule.start_iteration(start, 10) == iteration


@pytest.mark.parametrize("start", [1200, 10**12])
def test_a_start_beyond_the_run_is_refused(start):
    with pytest.raises(ValueError, match=f"iteration {start}, past the end of the run of 1200"):
        Schedule("MultiStepLR", (40, 70), 120, 0, 0, 64).start_iteration(start, 10)
    assert Schedule("MultiStepLR", (40, 70), 120, 0, 0, 64).start_iteration(1199, 10) == 1199


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        ({}, ""),
        ({"name": "CosineAnnealingLR"}, ""),
        ({"warmup_iters": 40}, ""),
        ({"steps": ()}, "SOLVER.STEPS is empty"),
        ({"steps": (6,)}, "the first of SOLVER.STEPS [6] is not within SOLVER.MAX_EPOCH 6"),
        ({"steps": (5,)}, ""),
        ({"warmup_iters": 50, "delay_epochs": 5}, "but SOLVER.DELAY_EPOCHS 5 puts off SOLVER.STEPS [2] beyond"),
        ({"warmup_iters": 60, "delay_epochs": 5}, "but SOLVER.WARMUP_ITERS 60, 6 epochs of 10 iterations, puts off"),
        ({"steps": (9, 7)}, "the first of SOLVER.STEPS [9, 7] is not within SOLVER.MAX_EPOCH 6"),
        (
            {"warmup_iters": 41},
            "WARMUP_ITERS 41, 5 epochs of 10 iterations, puts off SOLVER.STEPS [2] beyond",
        ),
        ({"delay_epochs": 4}, "SOLVER.DELAY_EPOCHS 4 puts off SOLVER.STEPS [2] beyond SOLVER.MAX_EPOCH 6"),
        (
            {"name": "CosineAnnealingLR", "warmup_iters": 2000},
            "WARMUP_ITERS 2000, 200 epochs of 10 iterations, puts off the schedule CosineAnnealingLR beyond",
        ),
        ({"name": "CosineAnnealingLR", "delay_epochs": 6}, "DELAY_EPOCHS 6 puts off the schedule CosineAnnealingLR"),
    ],
)
def test_why_there_is_no_decay(solver, said):
    values = {"name": "MultiStepLR", "steps": (2,), "max_epoch": 6, "delay_epochs": 0, "warmup_iters": 0}
    schedule = Schedule(**{**values, **solver}, batch_size=64)
    warning = schedule.warning("auto", 10)
    assert re.search(said.replace("[", r"\["), warning) if said else not warning
    assert not said or schedule.start_iteration("auto", 10) == 36
