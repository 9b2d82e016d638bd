"""fast-reid's training command, for those who have only its wheel: tools/train_net.py is not in it.

Same arguments, same behaviour. Besides, `--config-file` also takes the name of a config that comes with the plugin,
such as `Market1501_LT_H20_S5-MBJ.yml`.
"""

from __future__ import annotations

from argparse import Namespace

from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils.checkpoint import Checkpointer

from mbj_plugin import files


def find_config(name: str) -> str:
    """Path of a config file, given as a path or as the name of one that comes with the plugin.

    Raises:
        ValueError: where there is none; the message lists the names.
    """
    return str(files.find_config(name, "fastreid", ".yml"))


def train(args: Namespace) -> dict | None:
    """One rank of a run: train, or with ``--eval-only`` evaluate MODEL.WEIGHTS.

    Returns:
        fast-reid's results, such as mAP and Rank-1 in percent; None on other ranks than the first.
    """
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    if args.eval_only:
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN = False
        model = DefaultTrainer.build_model(cfg)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        return DefaultTrainer.test(cfg, model)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = default_argument_parser()
    args = parser.parse_args(argv)
    try:
        args.config_file = find_config(args.config_file)
    except ValueError as error:
        parser.error(str(error))
    launch(
        train,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
