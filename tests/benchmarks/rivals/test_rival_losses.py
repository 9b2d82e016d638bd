"""Each rival loss against its paper's formula, written as a plain loop in float64."""

import math

import pytest
import torch
from torch import nn

from benchmarks.rivals import create_loss
from benchmarks.rivals.class_balanced import ClassBalancedFocalLoss, effective_number_weights
from benchmarks.rivals.ldam import CosineLinear, LDAMLoss

COUNTS = [5000, 600, 50, 7]


def batch(rows=9, classes=4, scale=3.0):
    g = torch.Generator().manual_seed(0)
    return scale * torch.randn(rows, classes, generator=g), torch.randint(0, classes, (rows,), generator=g)


def softmax(row):
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def rows(logits, target):
    return list(zip(logits.double().tolist(), target.tolist(), strict=True))


def weights_by_hand(counts, beta=0.9999):
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    return [w * len(raw) / sum(raw) for w in raw]


def test_class_balanced_focal():
    logits, target = batch()
    w = weights_by_hand(COUNTS)
    terms = [-w[y] * (1 - softmax(z)[y]) ** 2.0 * math.log(softmax(z)[y]) for z, y in rows(logits, target)]
    loss = ClassBalancedFocalLoss(COUNTS, gamma=2.0)
    assert loss(logits, target).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_effective_number_weights():
    torch.testing.assert_close(effective_number_weights(COUNTS), torch.tensor(weights_by_hand(COUNTS)))
    torch.testing.assert_close(effective_number_weights(COUNTS, beta=0.0), torch.ones(4))
    with_empty = effective_number_weights([100, 0, 10])
    assert with_empty[1] == 0
    torch.testing.assert_close(with_empty[[0, 2]], effective_number_weights([100, 10]))
    with pytest.warns(match="0.9999 .* 60000 to 900000"):
        effective_number_weights([900000, 700000, 60000])


def ldam_by_hand(cosine, target, weights, max_margin=0.5, scale=30.0):
    margins = [n**-0.25 for n in COUNTS]
    margins = [m * max_margin / max(margins) for m in margins]
    terms = []
    for z, y in rows(cosine, target):
        shifted = [scale * (v - (margins[y] if c == y else 0.0)) for c, v in enumerate(z)]
        terms.append(-weights[y] * math.log(softmax(shifted)[y]))
    return sum(terms) / sum(weights[y] for y in target.tolist())


def test_ldam_before_and_after_the_deferred_start():
    logits, target = batch(scale=0.3)
    loss = LDAMLoss(COUNTS, start=2)
    values = [loss(logits, target).item() for _ in range(4)]
    before, after = ldam_by_hand(logits, target, [1.0] * 4), ldam_by_hand(logits, target, weights_by_hand(COUNTS))
    assert values == [pytest.approx(v, rel=1e-5) for v in (before, before, after, after)]


def test_ldam_counts_learning_calls_only_and_saves_them():
    loss, (logits, target) = LDAMLoss(COUNTS, start=1), batch()
    with torch.no_grad():
        loss(logits, target)
    loss.eval()(logits, target)
    assert loss.step == 0
    loss.train()(logits, target)
    other = LDAMLoss(COUNTS, start=1)
    other.load_state_dict(loss.state_dict())
    assert other.step == 1 and list(loss.state_dict()) == ["step"]


def test_cosine_classifier():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 4)

        def get_classifier(self):
            return self.fc

        def forward(self, x):
            return self.fc(x)

    model = LDAMLoss.adapt_model(Model())
    assert isinstance(model.fc, CosineLinear)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    expected = [[float(a @ b / a.norm() / b.norm()) for b in model.fc.weight.detach()] for a in x]
    torch.testing.assert_close(model(x), torch.tensor(expected))
    with pytest.raises(ValueError, match="nn.Linear.*CosineLinear"):
        LDAMLoss.adapt_model(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_loss("typo", COUNTS), "unknown loss 'typo'"),
        (lambda: create_loss("cb_focal", [[1, 2]]), "list of C counts"),
        (lambda: create_loss("ldam_drw", [3, -1]), ">= 0"),
        (lambda: create_loss("ldam_drw", COUNTS, start=-1), "start.*-1"),
        (lambda: LDAMLoss(COUNTS, scale=0), "scale.*0"),
        (lambda: LDAMLoss(COUNTS, max_margin=-1), "max_margin.*-1"),
        (lambda: ClassBalancedFocalLoss(COUNTS, gamma=-1), "gamma.*-1"),
        (lambda: ClassBalancedFocalLoss(COUNTS, beta=1.0), "beta.*1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["cb_focal", "ldam_drw"])
def test_soft_targets_are_a_clear_error(name):
    logits, target = batch()
    with pytest.raises(ValueError, match="Mixup"):
        create_loss(name, COUNTS)(logits, nn.functional.one_hot(target, 4).float())
