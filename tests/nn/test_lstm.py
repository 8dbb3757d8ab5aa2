"""An LSTM over padded utterances equals torch's LSTM over a packed sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from s3prl_mtl.nn.lstm import FRAME_MULTIPLE, lstm_over_padded
from s3prl_mtl.nn.recurrent import over_selected_rows


def over_packed(layer: nn.LSTM, features: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(layer(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lengths", [[9, 40, 23], [1], [FRAME_MULTIPLE, FRAME_MULTIPLE]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_output_and_gradients_equal_those_of_a_packed_sequence(
    bidirectional: bool, bias: bool, lengths: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(5, 7, bidirectional=bidirectional, bias=bias, batch_first=True).to(dtype)
    features = torch.randn(len(lengths), max(lengths), 5, dtype=dtype)
    found = []
    for function in (over_packed, lstm_over_padded, over_selected_rows):
        inputs = features.clone().requires_grad_()
        output = function(layer, inputs, torch.tensor(lengths))
        layer.zero_grad()
        (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        assert inputs.grad is not None
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        found.append([output.detach(), inputs.grad, *gradients])
    assert len(found[0]) == 2 + len(list(layer.parameters()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=tolerance, atol=tolerance)
