"""Frame-level head: each frame is classified independently."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from s3prl_mtl.errors import UserError, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
}


class FrameLevel(nn.Module):
    """A linear layer on each frame: SUPERB's phone recognition head.

    Parameters are named as in s3prl: `linear`, and `hiddens.N` for the hidden layers.

    Args:
        input_dim: width of the features.
        output_dim: number of outputs per frame.
        hiddens: widths of hidden layers before `linear`; none in SUPERB.
        activation: activation of the hidden layers: ReLU, GELU, Tanh or Sigmoid.

    Raises:
        UserError: unknown activation.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hiddens: Sequence[int] | None = None,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(
                f"Unknown activation {activation!r}.",
                where="FrameLevel.activation",
                fix=nearest(str(activation), list(ACTIVATIONS)),
                code="unknown-name",
            )
        layers: list[nn.Module] = []
        for width in hiddens or ():
            layers += [nn.Linear(input_dim, width), ACTIVATIONS[activation]()]
            input_dim = width
        self.hiddens = nn.Sequential(*layers)
        self.linear = nn.Linear(input_dim, output_dim)

    @property
    def subsampling(self) -> int:
        """Frames of the features for each frame of logits."""
        return 1

    def logit_count(self, frames: int) -> int:
        """Logits of an utterance of so many frames: one for each."""
        return frames

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, output_dim) of features (B, T, input_dim), and the unchanged lengths.

        Logits of padded frames are computed too and are meaningless.
        """
        return self.linear(self.hiddens(features)), lengths
