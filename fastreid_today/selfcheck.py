"""What fast-reid does in this Python: whether it imports, and whether it learns. It knows nothing of the plugin.

The doctor runs this file's text in a Python of its own, where fast-reid is as it came, and calls it in its own.
"""


def imports() -> str:
    """Whether fast-reid's trainer can be imported."""
    try:
        import fastreid.engine  # noqa: F401
    except Exception as error:  # whatever ends a user's import
        return f"fails: {type(error).__name__}: {error}"
    return "works"


def learns() -> str:
    """Whether the second step of fast-reid's own optimizer still moves the weights of a small model on the CPU.

    The first step decides nothing: what cuts the gradients off is the zero_grad() before it.
    """
    try:
        import torch
        from fastreid.config import get_cfg
        from fastreid.solver import build_optimizer

        model = torch.nn.Linear(3, 2)
        optimizer = build_optimizer(get_cfg(), model)[0]
        for _ in range(2):
            before = model.weight.detach().clone()
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    except Exception as error:  # as above
        return f"fails: {type(error).__name__}: {error}"
    return "changes no weight, without a word" if torch.equal(before, model.weight) else "changes the weights"


def report() -> list[str]:
    """One line each."""
    return [f"import fastreid.engine: {imports()}", f"a training step in fp32: {learns()}"]


if __name__ == "__main__":
    print("\n".join(report()))
