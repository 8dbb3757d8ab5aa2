"""The branch's `multitask.yaml`, unchanged and with small sizes for the tiny corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

REAL = Path(__file__).parents[1] / "fixtures" / "branch" / "multitask.yaml"
NINE = ["pr", "ks", "ic", "sid", "er", "asr", "sf", "sv", "sd"]

_WIDTHS = {"project_dim": 16, "projector_dim": 16, "hidden_size": 16, "agg_dim": 24}


def write_small(path: Path, corpus: Path) -> Path:
    """Write the file with the paths of a corpus, narrow heads and few steps; the same keys."""
    values = yaml.safe_load(REAL.read_text())
    values["runner"] |= {"total_steps": 4, "save_step": 2}
    values["scheduler"]["num_warmup_steps"] = 1
    for task in NINE:
        _shrink(values[task])
        loop = values[task]["looprc"]
        loop["log_step"] = 2
        loop["eval_step"] = min(loop["eval_step"], 1_000_000 if task == "sv" else 4)
    values["asr"]["looprc"]["eval_dataloaders"] = ["dev-clean", "test-clean"]
    values["sv"]["modelrc"]["input_dim"] = 16
    paths: dict[str, tuple[str, dict[str, Any]]] = {
        "asr": ("datarc", {"libri_root": "LibriSpeech"}),
        "pr": ("corpus", {"path": "LibriSpeech"}),
        "sf": ("corpus", {"path": "SNIPS"}),
        "ks": (
            "datarc",
            {
                "speech_commands_root": "speech_commands_v0.01",
                "speech_commands_test_root": "speech_commands_test_set_v0.01",
            },
        ),
        "ic": ("datarc", {"file_path": "fluent_speech_commands_dataset"}),
        "sid": ("datarc", {"file_path": "VoxCeleb1", "meta_data": "VoxCeleb1/iden_split.txt"}),
        "er": ("datarc", {"root": "IEMOCAP_full_release"}),
        "sv": ("datarc", {"file_path": "VoxCeleb1", "test_meta_data": "VoxCeleb1/veri_test2.txt"}),
        "sd": ("loaderrc", {f"{split}_dir": f"Libri2Mix/{split}" for split in SD_SPLITS}),
    }
    for task, (part, names) in paths.items():
        values[task][part] |= {name: str(corpus / below) for name, below in names.items()}
    values["pr"]["corpus"]["lexicon"] = [str(corpus / "LibriSpeech" / "librispeech-lexicon.txt")]
    values["sv"]["datarc"]["dev_meta_data"] = None
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


SD_SPLITS = ("train", "dev", "test")


def _shrink(block: dict[str, Any]) -> None:
    for key, value in block.items():
        if isinstance(value, dict):
            _shrink(value)
        elif key == "num_workers":
            block[key] = 0
        elif key in _WIDTHS:
            block[key] = _WIDTHS[key]
        elif key == "dim":
            block[key] = [16] * len(value)
