"""Linear layers and norms in the precision of their input; the parameters are float32.

Under bfloat16, products accumulate and norms average in float32; inputs, outputs and parameters of
an operation are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pair = tuple[Tensor, Tensor]
"""Weight and bias of a layer."""


def make_linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear layer initialised as BERT's: normal with standard deviation 0.02, bias 0."""
    layer = nn.Linear(width_in, width_out)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``(N, width_in)`` -> ``(N, width_out)``."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalise each row of ``(N, D)``."""
    return F.layer_norm(
        x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps
    )


def in_precision(dtype: torch.dtype, *layers: nn.Linear | nn.LayerNorm) -> Iterator[Pair]:
    """Weight and bias of each layer: the parameters, or copies in another precision.

    A single kernel makes the copies: at the batch sizes of fine-tuning a GPU waits for Python.
    """
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    if parameters[0].dtype != dtype:
        parameters = _Cast.apply(dtype, *parameters)
    return zip(parameters[::2], parameters[1::2], strict=True)


class _Cast(torch.autograd.Function):
    """Copies of tensors in another precision."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = parameters[0].dtype
        copies = [torch.empty_like(parameter, dtype=dtype) for parameter in parameters]
        torch._foreach_copy_(copies, list(parameters))
        return tuple(copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        needed = [
            gradient if wanted else None
            for gradient, wanted in zip(gradients, ctx.needs_input_grad[1:], strict=True)
        ]
        rounded = [gradient for gradient in needed if gradient is not None]
        exact = [torch.empty_like(gradient, dtype=ctx.dtype) for gradient in rounded]
        torch._foreach_copy_(exact, rounded)
        filled = iter(exact)
        return None, *(None if gradient is None else next(filled) for gradient in needed)
