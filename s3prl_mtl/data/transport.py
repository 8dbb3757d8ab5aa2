"""Pack the tensors of a batch into one block of shared memory per dtype.

torch opens a file of shared memory for every tensor that a worker sends: a batch of some tasks has
over a hundred.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """A batch with its tensors concatenated by dtype.

    Args:
        content: the pickled batch, with numbers in place of its tensors.
        places: dtype, first element and shape of each tensor.
        values: the elements of all tensors of each dtype.
    """

    content: bytes
    places: list[tuple[torch.dtype, int, torch.Size]]
    values: dict[torch.dtype, Tensor]

    def unpack(self) -> Any:
        """The value; its tensors share memory, but none of its elements."""
        return _Unpickler(self).load()


def pack(value: Any) -> PackedBatch:
    """Pack the tensors of a value that can be pickled."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dump(value)
    places = []
    parts: dict[torch.dtype, list[Tensor]] = {}
    sizes: dict[torch.dtype, int] = {}
    for tensor in pickler.tensors:
        first = sizes.get(tensor.dtype, 0)
        places.append((tensor.dtype, first, tensor.shape))
        parts.setdefault(tensor.dtype, []).append(tensor.detach().reshape(-1))
        sizes[tensor.dtype] = first + tensor.numel()
    values = {dtype: torch.cat(flat) for dtype, flat in parts.items()}
    return PackedBatch(file.getvalue(), places, values)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        # Others may be sparse, quantised or a subclass.
        if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized:
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: PackedBatch) -> None:
        super().__init__(io.BytesIO(packed.content))
        self.packed = packed

    def persistent_load(self, number: int) -> Tensor:
        dtype, first, shape = self.packed.places[number]
        return self.packed.values[dtype][first : first + shape.numel()].view(shape)
