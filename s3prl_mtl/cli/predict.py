"""`predict`: the predictions of a trained run for audio, as JSON lines."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.cli.parser import add_trust
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.task_names import split_specs

if TYPE_CHECKING:
    from s3prl_mtl.inference.chunking import Chunking
    from s3prl_mtl.inference.files import FilePredictor, Line, LoadedTasks, PredictSettings
    from s3prl_mtl.inference.prediction_file import PredictionFile
    from s3prl_mtl.inference.processes import DevicePool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run, or one of its .ckpt files")
    audio = parser.add_argument(
        "audio", type=Path, nargs="+", help="audio files, or folders of them"
    )
    # With "*", argparse of Python 3.11 takes no audio that follows a flag.
    audio.required = False
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="paths of audio, one in a line; - reads them"
    )
    parser.add_argument(
        "--stdin", action="store_true", help="read raw audio: 16 bit, little endian, mono"
    )
    parser.add_argument("--rate", type=int, default=16_000, help="of --stdin, in Hz (16000)")
    parser.add_argument("--task", metavar="TASKS", help="asr,ks,... (default: all of the run)")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="write here, with absolute paths; after an interruption the same command continues",
    )
    parser.add_argument("--rttm", type=Path, metavar="FILE", help="write speaker segments (sd)")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="score every file against this speaker (sv)"
    )
    parser.add_argument(
        "--decoder", metavar="NAME=VALUE,...", help="decode asr by lm=FILE,lexicon=FILE,beam=N,..."
    )
    parser.add_argument(
        "--nbest", type=int, default=1, metavar="N", help="transcripts of a file (with an lm)"
    )
    parser.add_argument(
        "--timestamps", action="store_true", help="add the times of words (asr), phones (pr)"
    )
    parser.add_argument("--ctm", type=Path, metavar="FILE", help="write the times of asr, or pr")
    add_chunking(parser)
    parser.add_argument(
        "--batch_seconds", type=float, help="audio that is encoded together, in seconds (100)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1; or several: cuda:0,cuda:1"
    )
    add_trust(parser)


def add_chunking(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`chunking_of` reads."""
    parser.add_argument(
        "--chunk_seconds", type=int, help="longer audio is read in chunks of this length (40)"
    )
    parser.add_argument("--overlap_seconds", type=int, help="of neighbouring chunks (4)")


def chunking_of(arguments: argparse.Namespace) -> Chunking:
    """The lengths of the chunks.

    Raises:
        UserError: they are not possible.
    """
    from s3prl_mtl.inference.chunking import CHUNK_SECONDS, OVERLAP_SECONDS, Chunking

    seconds = CHUNK_SECONDS if arguments.chunk_seconds is None else arguments.chunk_seconds
    overlap = arguments.overlap_seconds
    if overlap is None:
        overlap = max(1, min(OVERLAP_SECONDS, seconds // 2))
    return Chunking(seconds, overlap)


def run(arguments: argparse.Namespace) -> None:
    """Print a line of JSON for every file: `file`, and the prediction of each task.

    The line of a file that cannot be read, is too short, or is refused by the encoder or a head has
    `error` instead; the remaining files are still predicted. The file of `--against` must be
    usable. With `--out` the lines are a file, which is there when it is complete; an interrupted
    one is continued. Audio of `--stdin` has a line for each chunk as it comes, then one for all.

    Raises:
        UserError: the run or a task does not exist, no task makes predictions, the audio is not
            named or named twice, the file of `--rttm` or `--against` cannot be used, or `--out`
            exists; at the end, if any file has an error.
    """
    from s3prl_mtl.inference.ctm import SUFFIX as CTM
    from s3prl_mtl.inference.ctm import write_ctm
    from s3prl_mtl.inference.files import BATCH_SECONDS, PredictSettings
    from s3prl_mtl.inference.prediction_file import PredictionFile
    from s3prl_mtl.inference.rttm import marks_file, recording_names, write_rttm
    from s3prl_mtl.inference.transcribing import Transcribing, parse_decoder

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "`predict` is a single process, which starts others itself.",
            where="torchrun",
            fix="Without torchrun: --device cuda:0,cuda:1.",
            code="launch-invalid",
        )
    seconds = BATCH_SECONDS if arguments.batch_seconds is None else arguments.batch_seconds
    if not seconds > 0 or arguments.rate < 1:
        raise UserError(
            "The value must be positive.", where="--batch_seconds, --rate", code="invalid-value"
        )
    settings = PredictSettings(
        arguments.run,
        tuple(split_specs(arguments.task, flag="--task")) if arguments.task else None,
        arguments.against,
        chunking_of(arguments),
        seconds,
        Transcribing(
            parse_decoder(arguments.decoder, "--decoder") if arguments.decoder else None,
            arguments.nbest,
            arguments.timestamps or arguments.ctm is not None,
        ),
        arguments.trust_remote_code,
    )
    audio = _audio(arguments)
    names = recording_names(audio) if arguments.rttm or arguments.ctm else {}
    with ExitStack() as stack:
        # Open the files before loading the run, to fail early if they are not writable.
        rttm = stack.enter_context(marks_file(arguments.rttm)) if arguments.rttm else None
        ctm = stack.enter_context(marks_file(arguments.ctm, CTM)) if arguments.ctm else None
        out = None
        if arguments.out is not None:
            out = PredictionFile(arguments.out, audio, resumable=not arguments.stdin)
            stack.enter_context(out)
        predictor = _predictor(settings, arguments, stack)
        _check_flags(arguments, predictor.tasks)
        failed: list[str] = []
        for line, is_new in _lines(predictor, settings, audio, out, arguments):
            if "error" in line:
                failed.append(line["file"])
            if is_new:
                text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
                _write(text) if out is None else out.write(text)
            # A file given twice is written once, and a stream as a whole.
            recording = names.get(line["file"])
            if recording is None or "error" in line or "start" in line:
                continue
            task, timed = predictor.tasks.diarization, predictor.tasks.timed
            if rttm is not None and task in line:
                write_rttm(rttm, recording, line[task], task)
            if ctm is not None and timed in line:
                write_ctm(ctm, recording, line[timed])
            names = {file: name for file, name in names.items() if name != recording}
    if failed:
        raise UserError(
            f"{len(failed)} of {len(audio)} files have no prediction: see `error` in their lines.",
            where=", ".join(failed[:3]) + (", ..." if len(failed) > 3 else ""),
            code="audio-unreadable",
        )


def _audio(arguments: argparse.Namespace) -> list[Path]:
    """The audio files of the command line or of the list; `-` for the standard input.

    Raises:
        UserError: none is given, or in more than one way, or the list cannot be read.
    """
    from s3prl_mtl.inference.files import STDIN

    given = [bool(arguments.audio), arguments.list is not None, arguments.stdin]
    if sum(given) != 1:
        raise UserError(
            "Audio is given in more than one way." if any(given) else "No audio is given.",
            where="predict",
            fix="Give files or folders, or --list FILE, or --stdin.",
            code="conflicting-options" if any(given) else "missing-option",
        )
    if arguments.stdin:
        if "," in arguments.device:
            raise UserError(
                "A stream is predicted on one device.",
                where=f"--stdin, --device {arguments.device}",
                fix="Name one device.",
                code="conflicting-options",
            )
        return [Path(STDIN)]
    files = _files(arguments.audio if arguments.list is None else _listed(arguments.list))
    if arguments.out is not None:
        files = [Path(os.path.abspath(file)) for file in files]
    return files


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
    found = [Path(line) for line in content.splitlines() if line.strip()]
    if not found:
        raise UserError("The list is empty.", where=f"--list {path}", code="missing-option")
    return found


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files, and all audio files below the folders; a folder without any stays as it is."""
    from s3prl_mtl.data import list_audio

    files: list[Path] = []
    for path in paths:
        found = [path / name for name in list_audio(path)] if path.is_dir() else []
        files += found or [path]
    return files


def _predictor(
    settings: PredictSettings, arguments: argparse.Namespace, stack: ExitStack
) -> FilePredictor | DevicePool:
    devices = [word.strip() for word in arguments.device.split(",") if word.strip()] or ["auto"]
    if len(devices) == 1:
        from s3prl_mtl.inference.files import FilePredictor

        return FilePredictor(settings, devices[0])
    from s3prl_mtl.inference.processes import DevicePool

    return stack.enter_context(DevicePool(settings, devices))


def _check_flags(arguments: argparse.Namespace, tasks: LoadedTasks) -> None:
    """Check that the tasks which flags need are predicted.

    Raises:
        UserError: one is not.
    """
    needed = (
        ("--rttm", arguments.rttm, "sd", tasks.diarization),
        ("--ctm", arguments.ctm, "asr or pr", tasks.timed),
        ("--against", arguments.against, "sv", tasks.verification),
    )
    for flag, given, task, found in needed:
        if given is not None and found is None:
            raise UserError(
                f"{flag} needs the task {task}.",
                where=flag,
                fix=f"--task ...,{task}",
                code="missing-option",
            )


def _lines(
    predictor: FilePredictor | DevicePool,
    settings: PredictSettings,
    audio: Sequence[Path],
    out: PredictionFile | None,
    arguments: argparse.Namespace,
) -> Iterator[tuple[Line, bool]]:
    """The lines of all files in their order, and whether each is new: not in `out` already."""
    from s3prl_mtl.data.audio_stream import pcm_blocks
    from s3prl_mtl.inference.files import FilePredictor, batches
    from s3prl_mtl.tracking.progress import FileProgress

    done = 0
    if out is not None:
        for line in out.start(_fingerprint(settings, predictor.tasks)):
            yield line, False
        done = out.done
    if arguments.stdin:
        assert isinstance(predictor, FilePredictor)
        blocks = pcm_blocks(sys.stdin.buffer, arguments.rate)
        yield from ((line, True) for line in predictor.stream(blocks))
        return
    # Lines on the same terminal show how far the work is.
    shown = out is not None or not sys.stdout.isatty()
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


def _fingerprint(settings: PredictSettings, tasks: LoadedTasks) -> dict[str, Any]:
    """All that lines depend on besides the files."""
    from s3prl_mtl.checkpoint.files import locate

    return {
        "run": os.path.abspath(settings.run),
        "step": tasks.step,
        "written": locate(settings.run).stat().st_mtime_ns,
        "tasks": list(tasks.names),
        "against": None if settings.against is None else os.path.abspath(settings.against),
        "chunk_seconds": settings.chunking.seconds,
        "overlap_seconds": settings.chunking.overlap,
        "transcribing": asdict(settings.transcribing),
    }


def _write(text: str) -> None:
    """Write to the standard output; exit if its reader, such as `head`, has closed it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
