"""Manifests: the utterances of a split in a memory-mapped Arrow file, as a sequence of lhotse cuts.

A manifest is an Arrow IPC file, uncompressed, with a row for each utterance (`SCHEMA`)::

    id  path  start  duration  sampling_rate  num_samples  channels  digest  labels (JSON)

- The file is mapped, not read: opening it takes no time and no memory, and all ranks and loader
  workers of a machine share its pages. A manifest is sent to a worker as the path of its file.
- A cut is made when it is drawn (`manifest[i]`). Checks and sampling work on columns: a million
  Python objects take a minute and 2 GB, and a worker that only reads them copies them, because
  Python counts references within the objects.
- Labels are one column of JSON, so that those of any task are kept exactly.
- The name of a file contains the fingerprint of its split (:mod:`.manifest_cache`). A file is never
  changed, so that a run is not affected by another one that scans a changed corpus.

:mod:`.sampling` divides an epoch into batches of row numbers, also without cuts: a resumed run
makes no cuts of the batches that it skips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lhotse import Recording
from lhotse.audio import AudioSource
from lhotse.cut import Cut, MonoCut, MultiCut

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("start", pa.float64()),  # seconds, of the segment in the file
        ("duration", pa.float64()),
        ("sampling_rate", pa.int64()),  # of the file, as the next two
        ("num_samples", pa.int64()),
        ("channels", pa.int64()),
        ("digest", pa.int64()),  # of some samples of the file; null if they are constant
        ("labels", pa.string()),
    ]
)

_BATCH_ROWS = 65_536
_CHUNK_ROWS = 4096


class Manifest(Sequence[Cut]):
    """The utterances of a split, as cuts that are made when they are drawn.

    Example::

        manifest = load_cuts(corpus, "train")
        manifest[7]                          # a lhotse cut, its labels in cut.custom["labels"]
        manifest.durations.sum() / 3600      # hours, without making cuts
        manifest.filter(lambda cut: cut.duration < 20)

    Args:
        path: a file of :func:`write_manifest`.
        rows: numbers of the rows of the file to use, (n,); default: all.

    Raises:
        OSError: the file cannot be opened.
        pyarrow.ArrowInvalid: it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        self.path = Path(path)
        self._rows = rows
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._rows)

    def __len__(self) -> int:
        return self._table.num_rows if self._rows is None else len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The cut of an utterance, or a manifest of several (a slice)."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        row = range(len(self))[index]  # negative indices, and IndexError
        if self._rows is not None:
            row = int(self._rows[row])
        return _make_cut(self._table.slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Cut]:
        for batch in self.columns().to_batches(max_chunksize=_CHUNK_ROWS):
            for row in batch.to_pylist():
                yield _make_cut(row)

    def columns(self, *names: str) -> pa.Table:
        """Columns of `SCHEMA` as an Arrow table; all without names."""
        table = self._table.select(list(names)) if names else self._table
        return table if self._rows is None else table.take(self._rows)

    @property
    def durations(self) -> np.ndarray:
        """Durations in seconds, float64 (utterances,)."""
        return np.asarray(self.columns("duration").column(0).to_numpy())

    def ids(self) -> Iterator[str]:
        """The ids of the utterances."""
        for chunk in _chunks(self.columns("id").column(0)):
            yield from chunk.to_pylist()

    def labels(self) -> Iterator[dict[str, Any]]:
        """The labels of each utterance."""
        for chunk in _chunks(self.columns("labels").column(0)):
            yield from _decode(chunk)

    def distinct_labels(self) -> Iterator[dict[str, Any]]:
        """The labels that occur, each at least once: faster if many utterances have the same."""
        for chunk in _chunks(self.columns("labels").column(0)):
            yield from _decode(pc.unique(chunk))

    def select(self, indices: np.ndarray) -> Manifest:
        """The utterances of some indices (n,), in that order."""
        return Manifest(self.path, indices if self._rows is None else self._rows[indices])

    def filter(self, predicate: Callable[[Cut], bool]) -> Manifest:
        """The utterances that a predicate accepts."""
        return self.select(np.flatnonzero([predicate(cut) for cut in self]))


def write_manifest(path: Path, cuts: Iterable[Cut]) -> None:
    """Write a manifest.

    Args:
        path: the file.
        cuts: segments of audio files, with `labels` and `digest` in `cut.custom`.

    Raises:
        OSError: the file cannot be written.
    """
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        rows: list[dict[str, Any]] = []
        for cut in cuts:
            rows.append(_row(cut))
            if len(rows) == _BATCH_ROWS:
                writer.write(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
                rows = []
        writer.write(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def _row(cut: Cut) -> dict[str, Any]:
    recording = cut.recording
    return {
        "id": cut.id,
        "path": recording.sources[0].source,
        "start": cut.start,
        "duration": cut.duration,
        "sampling_rate": recording.sampling_rate,
        "num_samples": recording.num_samples,
        "channels": recording.num_channels,
        "digest": cut.custom["digest"],
        "labels": json.dumps(cut.custom["labels"], default=dict),
    }


def _make_cut(row: Mapping[str, Any]) -> Cut:
    channels = list(range(row["channels"]))
    recording = Recording(
        id=Path(row["path"]).stem,
        sources=[AudioSource(type="file", channels=channels, source=row["path"])],
        sampling_rate=row["sampling_rate"],
        num_samples=row["num_samples"],
        duration=row["num_samples"] / row["sampling_rate"],
        channel_ids=channels,
    )
    cut_type: type[MonoCut] | type[MultiCut] = MonoCut if len(channels) == 1 else MultiCut
    return cut_type(
        id=row["id"],
        start=row["start"],
        duration=row["duration"],
        channel=0 if len(channels) == 1 else channels,
        recording=recording,
        custom={"labels": json.loads(row["labels"]), "digest": row["digest"]},
    )


def _chunks(column: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """Parts of a column, of which only one is Python objects at a time."""
    for start in range(0, len(column), _CHUNK_ROWS):
        yield column.slice(start, _CHUNK_ROWS)


def _decode(texts: pa.Array | pa.ChunkedArray) -> list[dict[str, Any]]:
    """Decode labels; together, as a call for each takes three times as long."""
    labels: list[dict[str, Any]] = json.loads(f"[{','.join(texts.to_pylist())}]")
    return labels
