"""What only tools and demos of fast-reid's checkout need."""

from __future__ import annotations

import logging

from fastreid_today.changes import change, replaces

logger = logging.getLogger("fastreid.today")


class _OptimizerAndParams(tuple):
    """What build_optimizer returns, a pair, which also answers as its first member, the optimizer."""

    def __getattr__(self, name: str) -> object:
        return getattr(self[0], name)


@replaces(
    "solver.build:build_optimizer", "tools/plain_train_net.py: `tuple is not an Optimizer`, for a pair comes back"
)
def optimizer_pair(build, *arguments, **options):
    """The pair also answers as the optimizer."""
    built = build(*arguments, **options)
    return _OptimizerAndParams(built) if type(built) is tuple else built


@replaces("solver.build:build_lr_scheduler", "the same, of the learning rate's schedule")
def schedule_of_a_pair(schedule, cfg, optimizer, *arguments, **options):
    """The schedule takes the pair for the optimizer."""
    optimizer = optimizer[0] if isinstance(optimizer, _OptimizerAndParams) else optimizer
    return schedule(cfg, optimizer, *arguments, **options)


@change(
    "evaluation/__init__.py",
    "demo/visualize_result.py: `cannot import name 'evaluate_rank'`, and it ranks features that it has not normalised",
)
def evaluate_rank_name() -> str | None:
    """The name is there, and a warning where distances below 0 say that the scores are not the evaluation's."""
    import fastreid.evaluation
    from fastreid.evaluation import rank

    def evaluate_rank(distances, *arguments, **options):
        if distances.min() < -0.01:  # 1 - cosine never is
            logger.warning(
                "Distances down to %.3g are of features that were not normalised, so that ranks and scores are not the "
                "evaluation's: in demo/visualize_result.py make it feats = F.normalize(torch.cat(feats, dim=0))",
                distances.min(),
            )
        return rank.evaluate_rank(distances, *arguments, **options)

    fastreid.evaluation.evaluate_rank = evaluate_rank
    return None
