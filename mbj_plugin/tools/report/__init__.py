"""What is shown after training: the page on one run or several. Hosts read their own run folders into a `Run`."""

from mbj_plugin.tools.report.command import main

__all__ = ["main"]
