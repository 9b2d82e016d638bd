"""What only projects, tools and demos of fast-reid's checkout need."""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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


class _EmptyDriver(MetaPathFinder, Loader):
    """Finds one module, which is empty, and as the last of all finders only where no other does."""

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == "fastclas.distracted_driver" else None

    def exec_module(self, module: ModuleType) -> None:
        pass


@change("projects/FastClas", "`No module named 'fastclas.distracted_driver'`, a file that is not in the repository")
def fastclas_driver() -> str | None:
    """Where the file is missing, an empty module takes its place: it would only register one more data set."""
    sys.meta_path.append(_EmptyDriver())
    return None
