import pytest

from mbj_plugin.settings import read
from mbj_plugin.timm import schedule
from mbj_plugin.timm.schedule import first_decay, learning_rates
from mbj_plugin.tools.trainer.args import make_parser


def arguments(*argv):
    return make_parser().parse_args(["--epochs", "200", "--lr", "0.1", *argv])


def start_epoch(start, args, updates_per_epoch):
    return schedule.start_epoch(start, args.sched, learning_rates(args, updates_per_epoch))


@pytest.mark.parametrize(
    ("flags", "epoch"),
    [
        (["--sched", "multistep", "--decay-milestones", "120", "160", "--decay-rate", "0.01"], 119),
        (["--sched", "step", "--decay-epochs", "30"], 30),
        (["--sched", "step", "--decay-epochs", "3", "--decay-rate", "0.97", "--warmup-epochs", "5"], 6),
        (["--sched", "cosine", "--warmup-epochs", "0"], 100),
        (["--sched", "none"], 120),
        (["--sched", "multistep", "--decay-milestones", "100", "--sched-on-updates"], 100),
    ],
)
def test_auto_is_the_first_decay(flags, epoch):
    # timm's milestone 120 is the 120th epoch, which has the index 119.
    assert start_epoch("auto", arguments(*flags), updates_per_epoch=7) == epoch


def test_a_plateau_s_decay_is_not_known_before():
    args = arguments()
    args.sched, args.patience_epochs = "plateau", 10  # timm's own train.py has it
    assert start_epoch("auto", args, updates_per_epoch=7) == 120


def test_learning_rates_are_those_of_the_schedule():
    rates = learning_rates(arguments("--sched", "multistep", "--decay-milestones", "120", "--warmup-epochs", "5"), 7)
    assert len(rates) == 200
    assert rates[0] == pytest.approx(1e-5)
    assert (rates[5], rates[118], rates[119]) == pytest.approx((0.1, 0.1, 0.01))


@pytest.mark.parametrize(
    ("start", "epoch"), [("0", 0), ("0.6", 120), ("1", 1), ("40", 40), (12.5, 12.5), ("0.25", 50), (199.5, 199.5)]
)
def test_numbers(start, epoch):
    assert start_epoch(read("start", start), arguments(), 7) == epoch


@pytest.mark.parametrize(
    ("rates", "stepwise", "epoch"),
    [
        ([1.0, 1.0, 0.9, 0.1], True, 2),
        ([1.0, 1.0, 0.9, 0.1], False, 3),
        ([1.0, 0.8, 0.5, 0.4], False, 2),  # at most half
        ([0.1, 0.4, 1.0, 0.9], True, 3),  # a warm-up is no decay
        ([0.1, 0.4, 1.0, 0.6, 0.3], False, 4),
        ([1.0, 1.0 - 1e-12, 0.5], True, 2),  # nor is a rounding
        ([1.0] * 10, True, None),
        ([1.0] * 9, False, None),
        ([0.1, 0.2, 0.3], False, None),
    ],
)
def test_first_decay(rates, stepwise, epoch):
    assert first_decay(rates, stepwise) == epoch


def test_rates_of_an_optimizer_without_one_are_relative():
    arguments_ = arguments("--sched", "multistep", "--decay-milestones", "120", "--warmup-epochs", "0")
    arguments_.lr = None
    rates = learning_rates(arguments_, 7)
    assert (rates[0], rates[-1]) == pytest.approx((1.0, 0.1))
