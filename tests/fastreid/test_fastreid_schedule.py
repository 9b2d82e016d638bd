"""When the learning rate first falls, and where the memory loss starts."""

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
    ("solver", "comes"),
    [
        ({}, True),
        ({"name": "CosineAnnealingLR"}, True),
        ({"steps": (5,)}, True),
        ({"warmup_iters": 40}, True),
        ({"warmup_iters": 41}, False),
        ({"steps": ()}, False),
        ({"steps": (9, 6)}, False),
        ({"delay_epochs": 4}, False),
        ({"name": "CosineAnnealingLR", "delay_epochs": 6}, False),
    ],
)
def test_that_no_decay_comes_is_said(solver, comes):
    values = {"name": "MultiStepLR", "steps": (2,), "max_epoch": 6, "delay_epochs": 0, "warmup_iters": 0} | solver
    schedule = Schedule(**values, batch_size=64)
    warning = schedule.warning("auto", 10)
    assert comes == (not warning) and not schedule.warning(7, 10)
    if not comes:
        assert all(str(value) in warning for value in (values["name"], list(values["steps"]), values["warmup_iters"]))
        assert "iteration 36" in warning and schedule.start_iteration("auto", 10) == 36
