"""Baseline and MBJ side by side on the synthetic set: a whole fast-reid run without a data set."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import torch
from fastreid.engine import default_argument_parser

from mbj_plugin.tools.fastreid import one_line
from mbj_plugin.tools.fastreid.synthetic import FOLDER, Plan, draw_dataset
from mbj_plugin.tools.fastreid.train import find_config, table, train_all

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


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Draw a synthetic long-tailed set in the layout of Market-1501 (figures, not people), and train "
        "and evaluate fast-reid's baseline and MBJ on it. It shows that everything works, not how good MBJ is."
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo_fastreid"), help="folder for all files")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, each with one baseline and one MBJ run")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (default: %(default)s); use more only on an idle machine"
    )
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
    words = ["--config-file", find_config(CONFIG), *args.opts, "OUTPUT_DIR", str(args.output)]
    options = Namespace(**vars(default_argument_parser().parse_args(words)), compare=True, seed=0, seeds=args.seeds)
    with one_line("mbj demo-fastreid"), contextlib.redirect_stdout(sys.stdout if args.verbose else io.StringIO()):
        scores = train_all(options)
    print(table(scores))


if __name__ == "__main__":
    main()
