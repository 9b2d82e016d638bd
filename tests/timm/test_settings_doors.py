import pytest

from mbj_plugin.settings import MBJSettings
from mbj_plugin.timm.settings import from_args, from_text
from mbj_plugin.tools.trainer.args import make_parser


def test_flags_and_text_say_the_same():
    argv = "--mbj-memory both --mbj-eta 3 --mbj-size 9 --mbj-beta 1 --mbj-norm sum --mbj-start 0.5 --mbj-momentum 0.9"
    text = "memory=both, eta=3,size=9,beta=1,norm=sum,start=0.5,momentum=0.9"
    assert from_args(make_parser().parse_args(argv.split())) == from_text(text)
    assert from_args(make_parser().parse_args([])) == from_text("") == MBJSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("etha=3", "'etha=3'.*did you mean 'eta'"),
        ("eta", "'eta'.*key=value"),
        ("eta=big", "MBJ: eta must be a number .*, got 'big'"),
        ("size=0.5", "MBJ: size must be a whole number .*, got 0.5"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        from_text(text)
