"""Check that all ranks have the same weights, and restore this."""

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
    """A number that changes, with near certainty, when any bit of the tensors does."""
    total = 0
    for tensor in tensors:
        bits = tensor.detach().contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
        # Weighted by position, to notice two values that are exchanged.
        places = torch.arange(1, len(bits) + 1, device=bits.device)
        total = (total * 1_000_003 + int((bits.to(torch.int64) * places).sum())) % 2**63
    return total


def check_in_sync(group: Group, what: str, tensors: Iterable[Tensor]) -> None:
    """Check that all ranks of a group have the same tensors.

    Args:
        group: the ranks.
        what: name of the module, for the error.
        tensors: its parameters.

    Raises:
        UserError: they differ.
    """
    prints = group.all_gather(fingerprint(tensors))
    if len(set(prints)) > 1:
        others = [r for r, p in zip(group.ranks, prints, strict=True) if p != prints[0]]
        raise SharedMistake(
            f"The weights of {what} differ between the ranks: those of "
            f"{', '.join(map(str, others))} from those of rank {group.ranks[0]}.",
            where=what,
            fix="Use the same checkpoint files on all machines.",
            code="ranks-differ",
        )


def resync_parameters(group: Group, what: str, tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of the first rank of a group to the others, if they have drifted apart.

    This does not occur on equal machines. Different GPUs may round an update differently.
    """
    held = list(tensors)
    prints = group.all_gather(fingerprint(held))
    if len(set(prints)) > 1:
        logger.warning(
            "The weights of %s differ between the ranks; using those of rank %d.",
            *(what, group.ranks[0]),
        )
        for tensor in held:
            if not group.is_lead:
                tensor.data.zero_()
            group.sum(tensor.data)
