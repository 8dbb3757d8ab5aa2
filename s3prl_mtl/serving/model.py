"""A trained run that serves one request at a time."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from s3prl_mtl.data.audio_stream import audio_blocks, audio_seconds
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.chunking import Chunking
from s3prl_mtl.inference.long_audio import LongRecording
from s3prl_mtl.inference.predictions import Answer
from s3prl_mtl.inference.trained import TrainedRun


class Abandoned(Exception):
    """Nobody waits for the predictions any more."""


class ServedModel:
    """A run and the thread that computes its predictions: requests never share the model.

    Args:
        run: the trained run.
        tasks: names of the tasks that make predictions.
        chunking: of long recordings.
        max_seconds: of a recording.
    """

    def __init__(
        self, run: TrainedRun, tasks: Sequence[str], chunking: Chunking, max_seconds: float
    ) -> None:
        self.run = run
        self.tasks = list(tasks)
        self._chunking = chunking
        self._max_seconds = max_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def predict(self, audio: BinaryIO, name: str, tasks: Sequence[str]) -> dict[str, Answer]:
        """The predictions for an audio file, {task: answer}.

        If the caller is cancelled, the work ends at its next chunk, or does not begin.

        Args:
            audio: the content of the file.
            name: of the file, for errors.
            tasks: names or aliases; empty for all.

        Raises:
            UserError: an unknown task, or audio that cannot be used or is too long.
        """
        abandoned = threading.Event()
        work = self._thread.submit(self._predict, audio, name, list(tasks), abandoned)
        try:
            return await asyncio.wrap_future(work)
        finally:
            abandoned.set()

    def close(self) -> None:
        """End the thread after the prediction that it computes."""
        self._thread.shutdown(cancel_futures=True)

    def _predict(
        self, audio: BinaryIO, name: str, tasks: list[str], abandoned: threading.Event
    ) -> dict[str, Answer]:
        names = self.run.predictable(tasks or self.tasks)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "audio"
            with path.open("wb") as file:
                shutil.copyfileobj(audio, file)
            try:
                return self._predict_file(path, names, abandoned)
            except UserError as error:
                # The file here is of no interest to the caller.
                where = name if error.where == str(path) else error.where
                raise UserError(error.what, where=where, fix=error.fix, code=error.code) from error

    def _predict_file(
        self, path: Path, tasks: list[str], abandoned: threading.Event
    ) -> dict[str, Answer]:
        length = audio_seconds(path)
        if length <= self._max_seconds and length <= self._chunking.seconds:
            return self.run.predict([path], tasks)[0]
        if length != float("inf"):
            self._check(length, path)
        recording = LongRecording(self.run, tasks)
        for _ in recording.add_all(audio_blocks(path), self._chunking):
            self._check(recording.seconds, path)
            if abandoned.is_set():
                raise Abandoned
        return recording.answers()

    def _check(self, seconds: float, path: Path) -> None:
        if seconds > self._max_seconds:
            raise UserError(
                f"The audio is longer than {self._max_seconds:g} s.",
                where=str(path),
                fix="Send a shorter part of it.",
                code="audio-too-long",
            )
