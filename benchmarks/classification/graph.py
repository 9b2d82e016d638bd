"""A step as one CUDA graph."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_CAPTURE = threading.Lock()


def graphed(
    forward_backward: Callable[..., Tensor],
    example: tuple[Tensor, ...],
    parameters: list[nn.Parameter],
    stateful: list[Any],
) -> Callable[..., Tensor]:
    """``forward_backward`` as one CUDA graph, to be followed by an ordinary optimizer step.

    Warming up and capturing leave no trace: what the warm-up writes into ``stateful`` (batch-norm statistics, the
    memory, the log) is put back. The gradients live in the graph's pool, and each replay overwrites them, so they must
    not be zeroed.

    Args:
        forward_backward: of some tensors, the same shapes in each step; its value is a loss that is detached.
        example: such tensors.
        parameters: whose gradients it makes.
        stateful: what it writes into, with a ``state_dict``.
    """
    with _CAPTURE:
        before = [copy.deepcopy(one.state_dict()) for one in stateful]
        static, stream = [one.clone() for one in example], torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                _forget_gradients(parameters)
                forward_backward(*static)
        torch.cuda.current_stream().wait_stream(stream)
        _forget_gradients(parameters)
        graph = torch.cuda.CUDAGraph()
        # Other threads train other cells meanwhile: their calls must not break this capture.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            loss = forward_backward(*static)
        for one, state in zip(stateful, before, strict=True):
            one.load_state_dict(state)

    def replay(*inputs: Tensor) -> Tensor:
        for place, new in zip(static, inputs, strict=True):
            place.copy_(new)
        graph.replay()
        return loss

    return replay


def _forget_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
