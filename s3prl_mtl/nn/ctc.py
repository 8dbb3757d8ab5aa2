"""CTC loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_mtl.nn.transfer import to_device


def ctc_loss(
    logits: Tensor,
    logit_lengths: Tensor,
    targets: Sequence[Tensor],
    *,
    blank: int = 0,
    zero_infinity: bool = True,
) -> Tensor:
    """Connectionist temporal classification loss of SUPERB's ASR, phone recognition, slot filling.

    The loss of an utterance is divided by the length of its target, then averaged over utterances.

    Args:
        logits: unnormalised scores (B, T, V).
        logit_lengths: frames of each utterance (B,), on the CPU.
        targets: B tensors of token indices, without blanks, on the CPU.
        blank: index of the blank.
        zero_infinity: use a loss of 0 without gradient, instead of infinity, for an utterance
            with too few frames for its target.

    Returns:
        A scalar, float32; NaN if a logit is not finite.

    Reference: Graves et al., "Connectionist temporal classification", ICML 2006.
    """
    # PyTorch's `zero_infinity` would hide NaN too.
    sound = logits.detach().isfinite().all()
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    tokens = [torch.as_tensor(target, dtype=torch.long) for target in targets]
    target_lengths = torch.tensor([len(target) for target in tokens], dtype=torch.long)
    loss = F.ctc_loss(
        log_probs,
        to_device(pad_sequence(tokens, batch_first=True), logits.device),
        logit_lengths.to("cpu", torch.long),
        target_lengths,
        blank=blank,
        zero_infinity=zero_infinity,
    )
    return torch.where(sound, loss, torch.full_like(loss, torch.nan))
