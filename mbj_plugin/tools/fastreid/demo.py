"""Baseline and MBJ side by side on the synthetic set: a whole fast-reid run without a data set."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer
from fastreid.utils.env import seed_all_rng

from mbj_plugin.tools.fastreid.synthetic import FOLDER, Plan, draw_dataset
from mbj_plugin.tools.fastreid.train import SCORES, find_config, table

ARMS = {"baseline": "EmbeddingHead", "MBJ": "MBJHead"}
CONFIG = "Demo-MBJ.yml"


def quiet_fastreid() -> None:
    """Keep fast-reid's log off the screen, and what torch says of its code: a storage type that it uses, and the four
    workers of its test loader. Without a handler the trainer sets one up, which prints every layer."""
    logger = logging.getLogger("fastreid")
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for message in ("TypedStorage is deprecated", "This DataLoader will create"):
        warnings.filterwarnings("ignore", message)


def run(head: str, seed: int, folder: Path, opts: list[str]) -> dict[str, float]:
    """Train and evaluate once.

    Args:
        head: MODEL.HEADS.NAME.
        seed: of weights, batches and augmentation; both arms of one seed see the same.
        folder: where fast-reid writes logs and checkpoints.
        opts: config options, `KEY value ...`.

    Returns:
        mAP, mINP and Rank-1, in percent.
    """
    cfg = get_cfg()
    cfg.merge_from_file(find_config(CONFIG))
    cfg.merge_from_list(["MODEL.HEADS.NAME", head, "OUTPUT_DIR", str(folder), *opts])
    cfg.freeze()
    folder.mkdir(parents=True, exist_ok=True)
    seed_all_rng(seed)
    found = DefaultTrainer(cfg).train()
    return {score: float(found[score]) for score in SCORES}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Draw a synthetic long-tailed set in the layout of Market-1501 (figures, not people), train and "
        "evaluate fast-reid's baseline and MBJ on it. It shows that everything works, not how good MBJ is."
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo_fastreid"), help="folder for all files")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds: one baseline and one MBJ run of each")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more only on an idle machine")
    parser.add_argument("--verbose", action="store_true", help="show fast-reid's own log")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options, such as MODEL.MBJ.NORM max")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if not args.verbose:
        quiet_fastreid()
    # Read by fast-reid when its data module is imported, so set there.
    import fastreid.data.build

    fastreid.data.build._root = str(args.output)
    plan = Plan()
    print(f"Drawing the synthetic set into {args.output / FOLDER}", flush=True)
    draw_dataset(args.output, plan)
    print(
        f"{plan.train} training identities: {plan.head} with {plan.head_images} images, the others with "
        f"{plan.tail_images}; {plan.test} others to search for. Synthetic: the numbers say nothing about real images.",
        flush=True,
    )
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        for arm, head in ARMS.items():
            print(f"Training {arm}, seed {seed} ...", flush=True)
            scores[arm].append(run(head, seed, args.output / f"{arm}-seed{seed}", args.opts))
    print(table(scores))


if __name__ == "__main__":
    main()
