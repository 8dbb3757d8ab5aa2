"""Predictions of a run for audio. The flags are in `s3prl_mtl/cli/predict.py`."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from s3prl_mtl.api.calls import PathLike, Words, callable_from_python, listed, split_tasks
from s3prl_mtl.errors import UserError

if TYPE_CHECKING:
    from s3prl_mtl.inference.files import FilePredictor, Line, LoadedTasks, PredictSettings
    from s3prl_mtl.inference.prediction_file import PredictionFile
    from s3prl_mtl.inference.processes import DevicePool


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run for files.

    Attributes:
        lines: a dict for each file: `file`, and the prediction of each task, or `error`. Empty if
            `out` or `on_line` received them.
        failed: the files with an error.
        count: of the files.
    """

    lines: Sequence[dict[str, Any]]
    failed: Sequence[str]
    count: int

    def require_all(self) -> None:
        """Raise an error if a file has no prediction.

        Raises:
            UserError: names the first of them.
        """
        if self.failed:
            raise UserError(
                f"{len(self.failed)} of {self.count} files have no prediction: see `error` in "
                "their lines.",
                where=", ".join(self.failed[:3]) + (", ..." if len(self.failed) > 3 else ""),
                code="audio-unreadable",
            )


@callable_from_python
def predict(
    run: PathLike,
    audio: PathLike | Sequence[PathLike] | None = None,
    *,
    list: PathLike | None = None,
    stdin: bool | BinaryIO = False,
    rate: int = 16_000,
    task: Words | None = None,
    out: PathLike | None = None,
    rttm: PathLike | None = None,
    against: PathLike | None = None,
    decoder: str | Mapping[str, Any] | None = None,
    nbest: int = 1,
    timestamps: bool = False,
    ctm: PathLike | None = None,
    chunk_seconds: int | None = None,
    overlap_seconds: int | None = None,
    batch_seconds: float | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    on_line: Callable[[dict[str, Any]], object] | None = None,
    progress: bool = False,
) -> Predictions:
    """Predict audio with the heads of a run: the command `predict`.

    A file that cannot be read, is too short, or is refused by the encoder or a head has `error`;
    the others are still predicted. `s3prl_mtl.load` takes waveforms, and keeps the weights.

    Args:
        run: the folder of a run, or one of its `.ckpt` files.
        audio: files, or folders of them; or give `list` or `stdin`.
        list: a file with the paths of audio, one in a line; `-` is the standard input.
        stdin: raw audio, 16 bit, little endian, mono: True reads the standard input, or give an
            open binary file. It has a line for each chunk as it comes, then one for the whole.
        rate: of `stdin`, in Hz.
        task: the tasks; by default all of the run that make predictions.
        out: write the lines here, as JSON with absolute paths; there when it is complete. The same
            call continues after an interruption.
        rttm: write the segments of `sd` here.
        against: a recording of the speaker to score the files against (`sv`).
        decoder: of `asr`, in place of the run's: settings by name, or the text of the flag.
        nbest: transcripts of a file; more than one need a language model.
        timestamps: add the times of words (`asr`) and phones (`pr`).
        ctm: write the times of `asr`, or else of `pr`, here.
        chunk_seconds: longer audio is read in chunks of this length (40).
        overlap_seconds: of neighbouring chunks (4).
        batch_seconds: audio that is encoded together, in seconds (100).
        device: `auto`, `cpu`, `cuda`, `cuda:1`; or several: `cuda:0,cuda:1`.
        trust_remote_code: execute modelling code of the repository of the encoder.
        on_line: called with each line as soon as it is predicted.
        progress: show the files that are done and the time left.

    Returns:
        the lines in the order of the files, and which failed.

    Raises:
        UserError: the run or a task does not exist, no task makes predictions, the audio is not
            named or named twice, the file of `rttm`, `ctm` or `against` cannot be used, or `out`
            exists.
    """
    from s3prl_mtl.inference.chunking import chunking_of
    from s3prl_mtl.inference.ctm import SUFFIX as CTM
    from s3prl_mtl.inference.ctm import write_ctm
    from s3prl_mtl.inference.files import BATCH_SECONDS, PredictSettings
    from s3prl_mtl.inference.prediction_file import PredictionFile
    from s3prl_mtl.inference.rttm import marks_file, recording_names, write_rttm
    from s3prl_mtl.inference.transcribing import Transcribing, parse_decoder

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "`predict` starts its own processes and cannot run under torchrun.",
            where="torchrun",
            fix="Without torchrun: --device cuda:0,cuda:1.",
            code="launch-invalid",
        )
    seconds = BATCH_SECONDS if batch_seconds is None else batch_seconds
    if not 0 < seconds < math.inf or rate < 1:
        raise UserError(
            "The value must be positive and finite.",
            where="--batch_seconds, --rate",
            code="invalid-value",
        )
    if isinstance(decoder, str):
        decoder = parse_decoder(decoder, "--decoder")
    settings = PredictSettings(
        Path(run),
        tuple(split_tasks(task, "--task")) if task else None,
        None if against is None else Path(against),
        chunking_of(chunk_seconds, overlap_seconds),
        seconds,
        Transcribing(decoder, nbest, timestamps or ctm is not None),
        trust_remote_code,
    )
    files = _audio(listed(audio), list, stdin, device)
    if out is not None and not stdin:
        files = [Path(os.path.abspath(file)) for file in files]
    names = recording_names(files) if rttm or ctm else {}
    written: set[str] = set()
    lines: dict[int, dict[str, Any]] = {}
    failed: dict[int, str] = {}
    with ExitStack() as stack:
        # Open the files before loading the run, to fail early if they are not writable.
        segments = stack.enter_context(marks_file(Path(rttm))) if rttm else None
        times = stack.enter_context(marks_file(Path(ctm), CTM)) if ctm else None
        file = None
        if out is not None:
            file = PredictionFile(Path(out), files, resumable=not stdin)
            stack.enter_context(file)
        predictor = _predictor(settings, device, stack)
        needed = (
            ("--rttm", rttm, "sd", predictor.tasks.diarization),
            ("--ctm", ctm, "asr or pr", predictor.tasks.timed),
            ("--against", against, "sv", predictor.tasks.verification),
        )
        for flag, given, tasks, found in needed:
            if given is not None and found is None:
                raise UserError(
                    f"{flag} needs the task {tasks}.",
                    where=flag,
                    fix=f"--task ...,{tasks}",
                    code="missing-option",
                )
        stream = sys.stdin.buffer if stdin is True else stdin or None
        work = _lines(predictor, settings, files, file, stream, rate, progress)
        for number, (line, is_new) in enumerate(work):
            if "error" in line:
                failed[number] = line["file"]
            if is_new:
                if file is not None:
                    file.write(json_line(line))
                if on_line is not None:
                    on_line(line)
            if file is None and on_line is None:
                lines[number] = line
            # A file given twice is written once, and a stream as a whole.
            recording = names.get(line["file"])
            if recording is None or recording in written or "error" in line or "start" in line:
                continue
            written.add(recording)
            diarization, timed = predictor.tasks.diarization, predictor.tasks.timed
            if segments is not None and diarization in line:
                write_rttm(segments, recording, line[diarization], diarization)
            if times is not None and timed in line:
                write_ctm(times, recording, line[timed])
    if out is not None:
        logger.info(
            "Wrote %s: %d files, %d of them without a prediction", out, len(files), len(failed)
        )
    return Predictions([*lines.values()], [*failed.values()], len(files))


def json_line(line: dict[str, Any]) -> str:
    """The line of a file, as text; escaped if the name of the file is not valid UTF-8."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    if not _is_encodable(text):
        text = json.dumps(line, allow_nan=False)
    return text + "\n"


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _audio(
    audio: Sequence[PathLike], paths: PathLike | None, stdin: bool | BinaryIO, device: str
) -> list[Path]:
    """The audio files; `-` for the standard input.

    Raises:
        UserError: none is given, or in more than one way, or the list cannot be read.
    """
    from s3prl_mtl.inference.files import STDIN

    given = [bool(audio), paths is not None, bool(stdin)]
    if sum(given) != 1:
        raise UserError(
            "Audio is given in more than one way." if any(given) else "No audio is given.",
            where="predict",
            fix="Give files or folders, or --list FILE, or --stdin.",
            code="conflicting-options" if any(given) else "missing-option",
        )
    if stdin:
        if "," in device:
            raise UserError(
                "A stream is predicted on one device.",
                where=f"--stdin, --device {device}",
                fix="Name one device.",
                code="conflicting-options",
            )
        return [Path(STDIN)]
    return _files([Path(path) for path in audio] if paths is None else _listed(Path(paths)))


def _listed(path: Path) -> list[Path]:
    """The paths in a list, one in a line, relative to the working directory."""
    try:
        # Names of files may be of any bytes.
        if str(path) == "-":
            content = os.fsdecode(sys.stdin.buffer.read())
        else:
            content = os.fsdecode(path.read_bytes())
    except OSError as cause:
        raise UserError(
            f"The list cannot be read: {cause.strerror}.",
            where=f"--list {path}",
            code="file-unreadable" if path.exists() else "file-missing",
        ) from cause
    lines = content.removeprefix("\ufeff").splitlines()
    found = [Path(line) for line in lines if line.strip()]
    if not found:
        raise UserError("The list is empty.", where=f"--list {path}", code="missing-option")
    return found


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files, and all audio files below the folders; a folder without audio is kept."""
    from s3prl_mtl.data import list_audio

    files: list[Path] = []
    for path in paths:
        found = [path / name for name in list_audio(path)] if path.is_dir() else []
        files += found or [path]
    return files


def _predictor(
    settings: PredictSettings, device: str, stack: ExitStack
) -> FilePredictor | DevicePool:
    devices = [word.strip() for word in device.split(",") if word.strip()] or ["auto"]
    if len(devices) == 1:
        from s3prl_mtl.inference.files import FilePredictor

        return FilePredictor(settings, devices[0])
    from s3prl_mtl.inference.processes import DevicePool

    return stack.enter_context(DevicePool(settings, devices))


def _lines(
    predictor: FilePredictor | DevicePool,
    settings: PredictSettings,
    audio: Sequence[Path],
    out: PredictionFile | None,
    stream: BinaryIO | None,
    rate: int,
    shown: bool,
) -> Iterator[tuple[Line, bool]]:
    """The lines of all files in their order, and whether each is new: not in `out` already."""
    from s3prl_mtl.data.audio_stream import pcm_blocks
    from s3prl_mtl.inference.files import FilePredictor, batches
    from s3prl_mtl.tracking.progress import FileProgress

    done = 0
    if out is not None:
        for line in out.start(fingerprint(settings, predictor.tasks)):
            yield line, False
        done = out.done
    if stream is not None:
        assert isinstance(predictor, FilePredictor)
        yield from ((line, True) for line in predictor.stream(pcm_blocks(stream, rate)))
        return
    with FileProgress(audio, done, shown) as progress:
        found: Iterable[list[Line]]
        work = batches(audio[done:], settings)
        if isinstance(predictor, FilePredictor):
            found = (predictor.lines(batch, progress.within) for batch in work)
        else:
            found = predictor.lines(work)
        for lines in found:
            for line in lines:
                yield line, True
            progress.advance(len(lines))


def fingerprint(settings: PredictSettings, tasks: LoadedTasks) -> dict[str, Any]:
    """Everything that the lines depend on, except the audio files."""
    from s3prl_mtl.checkpoint.files import locate

    return {
        "run": os.path.abspath(settings.run),
        "step": tasks.step,
        "written": locate(settings.run).stat().st_mtime_ns,
        "tasks": [*tasks.names],
        "against": None if settings.against is None else os.path.abspath(settings.against),
        "chunk_seconds": settings.chunking.seconds,
        "overlap_seconds": settings.chunking.overlap,
        # As it is read again: lists in place of tuples.
        "transcribing": json.loads(json.dumps(asdict(settings.transcribing))),
    }
