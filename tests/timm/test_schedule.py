import pytest

from mbj_plugin.timm.schedule import learning_rates, parse_start, start_epoch
from mbj_plugin.timm.trainer.args import make_parser


def arguments(*argv):
    return make_parser().parse_args(["--epochs", "200", "--lr", "0.1", *argv])


@pytest.mark.parametrize(
    ("flags", "epoch"),
    [
        (["--sched", "multistep", "--decay-milestones", "120", "160", "--decay-rate", "0.01"], 119),
        (["--sched", "step", "--decay-epochs", "30"], 30),
        (["--sched", "step", "--decay-epochs", "3", "--decay-rate", "0.97", "--warmup-epochs", "5"], 6),
        (["--sched", "cosine", "--warmup-epochs", "0"], 100),
        (["--sched", "none"], 120),
        (["--sched", "plateau"], 120),
        (["--sched", "multistep", "--decay-milestones", "120", "--sched-on-updates"], 120),
    ],
)
def test_auto_is_the_first_decay(flags, epoch):
    # timm's milestone 120 is the 120th epoch, which has the index 119.
    assert start_epoch("auto", arguments(*flags), updates_per_epoch=7) == epoch


def test_learning_rates_are_those_of_the_schedule():
    rates = learning_rates(arguments("--sched", "multistep", "--decay-milestones", "120", "--warmup-epochs", "5"), 7)
    assert len(rates) == 200
    assert rates[0] == pytest.approx(1e-5)
    assert (rates[5], rates[118], rates[119]) == pytest.approx((0.1, 0.1, 0.01))


@pytest.mark.parametrize(("start", "epoch"), [("0", 0), ("0.6", 120), ("1", 1), ("40", 40), (12.5, 12.5)])
def test_numbers(start, epoch):
    assert start_epoch(start, arguments(), 7) == epoch


@pytest.mark.parametrize("start", ["-1", "soon", "nan", "inf"])
def test_bad_start(start):
    with pytest.raises(ValueError, match=f"start must be.*{start}"):
        parse_start(start)


@pytest.mark.parametrize("start", ["200", "1000"])
def test_past_the_end(start):
    with pytest.raises(ValueError, match=f"epoch {start}, past the end of the run of 200 epochs"):
        start_epoch(start, arguments(), 7)
