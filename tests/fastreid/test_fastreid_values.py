"""Numbers of fast-reid's runs against numbers computed by hand: MGN's memory loss, evaluation, re-ranking."""

import math

import numpy as np
import pytest
import torch
from fastreid.evaluation import ReidEvaluator, rank
from fastreid.utils.compute_dist import build_dist

from mbj_plugin.fastreid.collect import mbj_heads


def equation_4(features, labels, rows, row_labels, scale=16.0, margin=0.2):
    """Paper, Eq. 4, image by image and exponential by exponential."""
    losses = []
    for feature, label in zip(features.double(), labels.tolist(), strict=True):
        positive, negative = 0.0, 0.0
        for row, row_label in zip(rows.double(), row_labels.tolist(), strict=True):
            cosine = float(feature @ row / feature.norm() / row.norm()) if row_label >= 0 else 0.0
            if row_label == label:
                positive += math.exp(-scale * cosine)
            elif row_label >= 0:
                negative += math.exp(scale * (cosine + margin))
        losses.append(math.log(1 + negative * positive))
    return sum(losses) / len(losses)


def test_mgn_s_memory_loss_is_the_mean_over_its_eight_heads(make_trainer, steps):
    model = ("MODEL.META_ARCHITECTURE", "MGN", "MODEL.HEADS.EMBEDDING_DIM", 8, "INPUT.SIZE_TRAIN", [96, 16])
    backbone = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FEAT_DIM", 2048)
    memory = ("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64, "MODEL.MBJ.ETA", 0.5)
    trainer = make_trainer(*memory, *backbone, *model)
    heads = mbj_heads(trainer.model)
    assert len(heads) == 8
    for head in heads:  # prototypes that tell heads apart, since fast-reid's own start alike
        torch.nn.init.normal_(head.weight)
    steps(trainer, 1)
    before = [(h.memories["prototype"].bank.rows.clone(), h.memories["prototype"].bank.labels.clone()) for h in heads]
    necks, targets = {}, []
    for head in heads:
        head.bottleneck.register_forward_hook(
            lambda m, i, output, h=head: necks.update({h: output[..., 0, 0].detach()})
        )
    heads[0].register_forward_pre_hook(lambda module, inputs: targets.append(inputs[1]))
    loss = steps(trainer, 1)[0]["loss_mbj"].item()
    each = [0.5 * equation_4(necks[h], targets[0], *bank) for h, bank in zip(heads, before, strict=True)]
    assert max(each) > 1.05 * min(each) > 0
    assert loss == pytest.approx(sum(each) / 8, rel=1e-4)
    assert not any(head.pending for head in heads)


def evaluate(cfg, queries, gallery):
    """Results of fast-reid's evaluator on (feature, person, camera) of each query and gallery image."""
    evaluator = ReidEvaluator(cfg, num_query=len(queries))
    features, people, cameras = zip(*queries, *gallery, strict=True)
    batch = {"targets": torch.tensor(people), "camids": torch.tensor(cameras)}
    evaluator.process(batch, torch.tensor([[float(x), 0.0] for x in features]))
    return evaluator.evaluate()


# Points on a line. Person 1 is found as: its own camera (does not count), wrong, right, wrong, right.
QUERIES = [(0.0, 1, 0), (0.24, 2, 0)]
GALLERY = [(0.1, 1, 0), (0.2, 2, 1), (0.3, 1, 1), (0.4, 3, 1), (0.5, 1, 2), *[(10 + i, 9, 3) for i in range(55)]]


@pytest.mark.parametrize("fast", [True, False])
def test_evaluation(make_cfg, monkeypatch, fast):
    cfg = make_cfg("TEST.METRIC", "euclidean")
    if not fast:
        monkeypatch.setattr(rank, "IS_CYTHON_AVAI", False)
    results = evaluate(cfg, QUERIES, GALLERY)
    precision = [(1 / 2 + 2 / 4) / 2, 1.0]
    assert results["mAP"] == pytest.approx(100 * np.mean(precision))
    assert results["Rank-1"] == pytest.approx(50)
    assert results["Rank-5"] == pytest.approx(100)
    assert results["mINP"] == pytest.approx(100 * np.mean([2 / 4, 1.0]))


def test_reranking_is_the_jaccard_distance_of_k_reciprocal_neighbours():
    """Zhong et al., 2017 (https://arxiv.org/abs/1701.08398), with one neighbour beside each point itself.

    0 and 1 are each other's nearest, so are 3 and 3.5, and -2 is nobody's. A pair at the squared distance d holds the
    weights 1 / (1 + e^-d) and e^-d / (1 + e^-d), which overlap in 2 e^-d / (1 + e^-d) of 2 / (1 + e^-d).
    """
    points = torch.tensor([[0.0, 0], [3, 0], [1, 0], [3.5, 0], [-2, 0]])
    expected = [[1 - math.exp(-1), 1, 1], [1, 1 - math.exp(-0.25), 1]]
    distances = build_dist(points[:2], points[2:], "jaccard", k1=2, k2=1)
    np.testing.assert_allclose(distances, expected, atol=1e-6)


def test_with_k2_the_weights_of_neighbours_are_averaged():
    """Two neighbours that are averaged have the same weights, and no distance."""
    points = torch.tensor([[0.0, 0], [3, 0], [1, 0], [3.5, 0]])
    np.testing.assert_allclose(build_dist(points[:2], points[2:], "jaccard", k1=2, k2=2), [[0, 1], [1, 0]], atol=1e-6)


def test_evaluation_with_reranking(make_cfg):
    """Two neighbours beside each point. The nearest of the query is wrong, and keeps to its own kind; the next is right
    and among the query's mutual neighbours: its Jaccard distance of 0.706 puts it first, 0.3 * 1.21 + 0.7 * 0.706."""
    options = ("TEST.METRIC", "euclidean", "TEST.RERANK.K1", 3, "TEST.RERANK.K2", 1, "TEST.RERANK.LAMBDA", 0.3)
    wrong, right = [(1.0, 2, 1), (1.3, 2, 1), (1.4, 2, 1)], [(-1.1, 1, 1), (-3.0, 1, 1)]
    gallery = [*wrong, *right, *[(100 + 10 * i, 9, 3) for i in range(55)]]
    plain = evaluate(make_cfg(*options), [(0.0, 1, 0)], gallery)
    assert (plain["mAP"], plain["Rank-1"]) == pytest.approx((100 * (1 / 2 + 2 / 5) / 2, 0))
    again = evaluate(make_cfg(*options, "TEST.RERANK.ENABLED", True), [(0.0, 1, 0)], gallery)
    assert (again["mAP"], again["Rank-1"]) == pytest.approx((100 * (1 / 1 + 2 / 5) / 2, 100))
