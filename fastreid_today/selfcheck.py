"""What fast-reid does in this Python: whether it imports, and whether it learns.

The doctor runs this file's text in a Python of its own, where fast-reid is as it came, and calls it in its own.
"""

import importlib
import sys


def imports(package: str) -> str:
    """Whether fast-reid's trainer can be imported."""
    importlib.import_module(f"{package}.engine")
    return "works"


def learns(package: str) -> str:
    """Whether the second step of fast-reid's own optimizer still moves the weights of a small model on the CPU.

    The first step decides nothing: what cuts the gradients off is the zero_grad() before it.
    """
    import torch

    get_cfg = importlib.import_module(f"{package}.config").get_cfg
    build_optimizer = importlib.import_module(f"{package}.solver").build_optimizer

    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(get_cfg(), model)[0]
    for _ in range(2):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return "changes no weight, without an error" if torch.equal(before, model.weight) else "changes the weights"


def report(package: str = "fastreid") -> list[str]:
    """One line each; ``package`` is the name that fast-reid is imported by."""
    lines = []
    for what, check in ((f"import {package}.engine", imports), ("a training step in fp32", learns)):
        try:
            lines.append(f"{what}: {check(package)}")
        except Exception as error:  # whatever ends a user's import
            lines.append(f"{what}: fails: {type(error).__name__}: {error}")
    return lines


if __name__ == "__main__":
    print("\n".join(report(*sys.argv[1:])))
