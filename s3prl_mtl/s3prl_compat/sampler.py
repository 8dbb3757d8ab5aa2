"""A replacement for the one class of catalyst that s3prl's experts use."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from torch.utils.data import Dataset, DistributedSampler, Sampler


class _SamplerLength(Dataset[int]):
    """A dataset with the length of a sampler, for `DistributedSampler`."""

    def __init__(self, sampler: Sampler[int]) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        return len(self.sampler)

    def __getitem__(self, index: int) -> int:
        raise TypeError("a sampler has indices only during an epoch")


class DistributedSamplerWrapper(DistributedSampler[int]):
    """Divide the indices of any sampler among processes, like catalyst's class of this name.

    Args:
        sampler: gives the indices of an epoch.
        num_replicas: number of processes; by default that of torch's process group.
        rank: of this process.
        shuffle: shuffle the indices.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(
            _SamplerLength(sampler), num_replicas=num_replicas, rank=rank, shuffle=shuffle
        )
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.sampler)
        return iter([drawn[place] for place in super().__iter__()])
