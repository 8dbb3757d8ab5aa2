"""Linear layers and norms in the precision of their input; the parameters are float32.

Under bfloat16, products accumulate and norms average in float32; inputs, outputs and parameters of
an operation are rounded.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
