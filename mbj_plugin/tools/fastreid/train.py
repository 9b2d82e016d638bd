"""fast-reid's training command, for those who have only its wheel: tools/train_net.py is not in it.

Same arguments, same behaviour. Besides, `--config-file` also takes the name of a config that comes with the plugin,
such as `Market1501_LT_H20_S5-MBJ.yml`; `--seed` makes a run repeatable, `--compare` trains the baseline beside MBJ, and
`--seeds N` each of them N times. These three come before the config options, `KEY value ...`.
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from pathlib import Path

import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils import comm
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.env import seed_all_rng
from tabulate import tabulate

from mbj_plugin.tools import files
from mbj_plugin.tools.fastreid import one_line
from mbj_plugin.tools.files import read_jsonl
from mbj_plugin.tools.report.fastreid_run import SCORES, dotted
from mbj_plugin.tools.trainer.error_table import difference, mean_and_spread


def find_config(name: str) -> str:
    """Path of a config file, given as a path or as the name of one that comes with the plugin."""
    return str(files.find_config(name, "fastreid", ".yml"))


def read_config(args: Namespace) -> CfgNode:
    """The config that the arguments name."""
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    return cfg


def train(args: Namespace) -> dict | None:
    """One rank of a run: train, or with ``--eval-only`` evaluate MODEL.WEIGHTS.

    Returns:
        fast-reid's results, such as mAP and Rank-1 in percent; None on other ranks than the first.
    """
    cfg = read_config(args)
    cfg.freeze()
    default_setup(cfg, args)  # it draws a seed
    if args.seed is not None:
        seed_all_rng(args.seed + comm.get_rank())
    if args.eval_only:
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN = False
        model = DefaultTrainer.build_model(cfg)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        return DefaultTrainer.test(cfg, model)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def start(args: Namespace) -> None:
    """All ranks of one run."""
    places = {"num_machines": args.num_machines, "machine_rank": args.machine_rank, "dist_url": args.dist_url}
    launch(train, args.num_gpus, **places, args=(args,))


def train_all(args: Namespace) -> dict[str, list[dict[str, float]]]:
    """The runs that ``--compare`` and ``--seeds`` ask for, each in a folder of its own below OUTPUT_DIR. Finished ones
    are read, and an open one is gone on with.

    Returns:
        "baseline" and "MBJ" (those that were trained) to the scores of each seed.
    """
    if args.seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, got {args.seeds}")
    if args.resume or args.eval_only:
        raise ValueError("--compare and --seeds go on with their own runs: leave out --resume and --eval-only")
    cfg = read_config(args)
    own = cfg.MODEL.HEADS.NAME
    heads = {"MBJ" if own == "MBJHead" else "baseline": own}
    if args.compare:
        heads = {"baseline": "EmbeddingHead" if own == "MBJHead" else own, "MBJ": "MBJHead"}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in heads}
    first = args.seed or 0
    for seed in range(first, first + args.seeds):
        for name, head in heads.items():
            folder = Path(cfg.OUTPUT_DIR) / f"{name}-seed{seed}"
            opts = [*args.opts, "MODEL.HEADS.NAME", head, "OUTPUT_DIR", str(folder)]
            each = Namespace(**{**vars(args), "seed": seed, "opts": opts})
            each.resume = (folder / "last_checkpoint").is_file()
            if each.resume:
                check_same(folder, read_config(each))
            if not (folder / "model_final.pth").is_file():
                print(f"Training {name}, seed {seed} ...", file=sys.stderr, flush=True)
                logging.getLogger("fastreid").handlers.clear()  # of the run before, which would repeat every line
                start(each)
            scores[name].append(last_scores(folder))
    return scores


def check_same(folder: Path, cfg: CfgNode) -> None:
    """Raise ValueError where the run of a folder has other settings, but for those that fast-reid finds by itself."""
    now, then = dotted(yaml.safe_load(cfg.dump())), dotted(yaml.safe_load((folder / "config.yaml").read_text()))
    found = ("MODEL.HEADS.NUM_CLASSES", "MODEL.BACKBONE.FEAT_DIM", "MODEL.DEVICE")
    for key in [key for key in now if key not in found and now[key] != then.get(key)]:
        raise ValueError(f"{folder} was trained with {key} {then.get(key)}, now {now[key]}: give another OUTPUT_DIR")


def last_scores(folder: Path) -> dict[str, float]:
    """Scores in percent of the last evaluation in a run's metrics.json."""
    rows, _ = read_jsonl(folder / "metrics.json", "iteration")
    found = [{key: row[key] for key in row if key.rpartition("/")[2] in SCORES} for row in rows]
    scores = next((scores for scores in reversed(found) if scores), None)
    if scores is None:
        raise ValueError(f"{folder / 'metrics.json'} holds no evaluation: is TEST.EVAL_PERIOD above 0?")
    return dict(sorted(scores.items(), key=lambda item: SCORES.index(item[0].rpartition("/")[2])))


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Each score over the seeds, and of two methods their paired difference."""
    rows = []
    for key in next(iter(scores.values()))[0]:
        values = [[run[key] for run in runs] for runs in scores.values()]
        pairs = [[b - a for a, b in zip(*values, strict=True)]] if len(values) == 2 else []
        rows.append([key, *map(mean_and_spread, values), *map(difference, pairs)])
    header = ["%", *scores, *["difference"] * (len(scores) == 2)]
    seeds = len(next(iter(scores.values())))
    return f"{tabulate(rows, header, disable_numparse=True)}\n{seeds} seed{'s' * (seeds > 1)}"


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = default_argument_parser()
    parser.description = (
        "Train a fast-reid model, with MBJ if the config has MODEL.HEADS.NAME MBJHead. "
        "An installed config is found by its name."
    )
    parser.add_argument(
        "--seed", type=int, help="seed of weights, batches and augmentation (default: a new one each time)"
    )
    parser.add_argument("--compare", action="store_true", help="train the baseline too, with the same seed")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train N runs, with seeds SEED, SEED + 1 and so on (SEED is --seed, or 0)",
    )
    args = parser.parse_args(argv)
    try:
        args.config_file = find_config(args.config_file)
    except ValueError as error:
        parser.error(str(error))
    with one_line("mbj train-fastreid"):
        if args.seed is not None and not 0 <= args.seed < 2**31:
            raise ValueError(f"--seed must be a whole number from 0 to {2**31 - 1}, got {args.seed}")
        if args.compare or args.seeds != 1:
            print(table(train_all(args)))
        else:
            start(args)
