"""Do all ranks have the same weights?"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from s3prl_mtl.distributed.world import Group
from s3prl_mtl.errors import SharedMistake

logger = logging.getLogger(__name__)

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A number that differs, all but surely, when any bit of the tensors does."""
    total = 0
    for tensor in tensors:
        bits = tensor.detach().contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
        # Weighed by position, so that two values that changed places are noticed.
        places = torch.arange(1, len(bits) + 1, device=bits.device)
        total = (total * 1_000_003 + int((bits.to(torch.int64) * places).sum())) % 2**63
    return total


def check_in_sync(group: Group, what: str, tensors: Iterable[Tensor]) -> None:
    """Refuse to train from weights that differ between the ranks of a group.

    Raises:
        UserError: they do.
    """
    prints = group.all_gather(fingerprint(tensors))
    if len(set(prints)) > 1:
        others = [r for r, p in zip(group.ranks, prints, strict=True) if p != prints[0]]
        raise SharedMistake(
            f"The weights of {what} are not the same on all ranks: those of "
            f"{', '.join(map(str, others))} differ from those of rank {group.ranks[0]}.",
            fix="The checkpoint files must be the same on all machines.",
        )


def resync_parameters(group: Group, what: str, tensors: Iterable[Tensor]) -> None:
    """Give all ranks of a group the weights of the first, should they have drifted apart.

    They cannot on machines that are alike. Different GPUs may round one update differently.
    """
    held = list(tensors)
    prints = group.all_gather(fingerprint(held))
    if len(set(prints)) > 1:
        logger.warning(
            "The weights of %s have drifted apart between the ranks; those of rank %d are kept.",
            *(what, group.ranks[0]),
        )
        for tensor in held:
            if not group.is_lead:
                tensor.data.zero_()
            group.sum(tensor.data)
