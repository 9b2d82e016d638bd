"""The command ``train_timm``: the entry point of :mod:`mbj_plugin.tools.trainer`, which tells where timm is missing."""

from __future__ import annotations

from collections.abc import Sequence

from mbj_plugin.command_line import one_line

INSTALL = "pip install 'mbj_plugin[timm]'"


def main(argv: Sequence[str] | None = None) -> None:
    """Train a timm classifier, and print the test error of all classes and of each class group."""
    with one_line("mbj train", INSTALL):
        from mbj_plugin.tools.trainer import train

        train.main(argv)


if __name__ == "__main__":
    main()
