"""`--format xares` and `--format hear`: a folder of transformers with a module that wraps it.

Both have the same module, under the name of the benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.errors import UserError
from s3prl_mtl.export import transformers_folder
from s3prl_mtl.export.formats import Options
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.export.task_inputs import chosen_weights

SOURCE = Path(__file__).with_name("standalone_encoder.py")
SETTINGS = "features.json"
FAIRSEQ_EPSILON, TRANSFORMERS_EPSILON = 1e-5, 1e-7
"""Added to the variance of a waveform that is normalised."""


def writer(name: str) -> Callable[[SavedRun, Path, Options], None]:
    """The function that writes the folder of a benchmark: with `<name>_encoder.py`."""

    def write(run: SavedRun, out: Path, options: Options) -> None:
        transformers_folder.write(run, out, options)
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        chosen = _settings(run, out, config, options)
        (out / SETTINGS).write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")
        module = SOURCE.read_text(encoding="utf-8")
        (out / f"{name}_encoder.py").write_text(module, encoding="utf-8")

    return write


def _settings(run: SavedRun, out: Path, config: dict[str, Any], options: Options) -> dict[str, Any]:
    """The settings of `standalone_encoder.py`.

    Raises:
        UserError: the encoder does not take waveforms, or needs code of its own.
    """
    path = out / "preprocessor_config.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    takes_waveforms = found.get("feature_extractor_type") == "Wav2Vec2FeatureExtractor"
    if not takes_waveforms or "auto_map" in config or not config.get("conv_kernel"):
        raise UserError(
            f"{run.upstream_name} is not an encoder of transformers with convolutions over "
            "waveforms, such as HuBERT, wav2vec 2.0 and WavLM.",
            where=str(run.path),
            fix="Use --format transformers, and write a wrapper of your own.",
            code="not-supported",
        )
    field, hop = 1, 1
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    epsilon = FAIRSEQ_EPSILON if run.kind == "hubert" else TRANSFORMERS_EPSILON
    return {
        "weights": chosen_weights(run, options, config["num_hidden_layers"] + 1),
        "normalize_epsilon": epsilon if found.get("do_normalize", True) else None,
        "sampling_rate": SAMPLE_RATE,
        "hop_samples": hop,
        "field_samples": field,
    }
