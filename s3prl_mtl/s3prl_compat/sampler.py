"""The one class that s3prl's experts need of catalyst, which no longer imports."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from torch.utils.data import Dataset, DistributedSampler, Sampler


class _Drawn(Dataset[int]):
    """What a sampler draws, as a data set: it has only a length."""

    def __init__(self, sampler: Sampler[int]) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        return len(self.sampler)

    def __getitem__(self, index: int) -> int:
        raise TypeError("what a sampler draws is known only once an epoch begins")


class DistributedSamplerWrapper(DistributedSampler[int]):
    """What any sampler draws, divided among processes, as catalyst's class of this name does.

    Args:
        sampler: draws the indices of an epoch.
        num_replicas: processes; those of torch's process group by default.
        rank: which of them this is.
        shuffle: in another order than drawn.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(_Drawn(sampler), num_replicas=num_replicas, rank=rank, shuffle=shuffle)
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.sampler)
        return iter([drawn[place] for place in super().__iter__()])
