"""Settings for experts of s3prl on the tiny corpus, and the files that s3prl's scripts prepare."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml

from s3prl_mtl.s3prl_compat.folders import installed_experts

Settings = dict[str, Any]

UTTERANCE_HEAD = {
    "projector_dim": 8,
    "select": "UtteranceLevel",
    "UtteranceLevel": {"pooling": "MeanPooling"},
}
RECURRENT_HEAD = {
    "project_dim": 8,
    "select": "RNNs",
    "RNNs": {
        "total_rate": -1,
        "module": "LSTM",
        "bidirection": True,
        "dim": [8],
        "dropout": [0.2],
        "layer_norm": [False],
        "proj": [False],
        "sample_rate": [1],
        "sample_style": "concat",
    },
}
FRAME_HEAD = {"project_dim": 8, "select": "FrameLevel", "FrameLevel": {}}


def write_config(path: Path, downstream_expert: Settings, splits: list[str] | None = None) -> Path:
    """Write a config file with the sections of s3prl's runner."""
    content = {
        "runner": {
            "total_steps": 200000,
            "gradient_accumulate_steps": 1,
            "eval_dataloaders": splits if splits is not None else ["dev", "test"],
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-4},
        "downstream_expert": downstream_expert,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def copy_expert(folder: str, scratch: Path) -> Path:
    """Copy an expert of the installed s3prl, because some write into their folder."""
    source = installed_experts()[folder]
    copy = scratch / "downstream" / folder
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return copy


def batches(train: str = "train_batch_size", evaluation: str = "eval_batch_size") -> Settings:
    return {"num_workers": 0, train: 2, evaluation: 2}


# ----------------------------------------------------------------------- one for each expert


def fluent_commands(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    root = corpus / "fluent_speech_commands_dataset"
    return {"datarc": {"file_path": str(root), **batches()}, "modelrc": UTTERANCE_HEAD}, []


def speech_commands(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    datarc = {
        "speech_commands_root": str(corpus / "speech_commands_v0.01"),
        "speech_commands_test_root": str(corpus / "speech_commands_test_set_v0.01"),
        "num_workers": 0,
        "batch_size": 4,
    }
    return {"datarc": datarc, "modelrc": UTTERANCE_HEAD}, []


def emotion(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    root = corpus / "IEMOCAP_full_release"
    classes = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    entries: dict[str, list[dict[str, str]]] = {}
    for file in sorted(root.glob("Session*/dialog/EmoEvaluation/*.txt")):
        session = file.parts[-4]
        for line in file.read_text().splitlines():
            if not line.startswith("["):
                continue
            _, name, label, *_ = line.split("\t")
            label = "hap" if label == "exc" else label
            if label in classes:
                wav = f"{session}/sentences/wav/{file.stem}/{name}.wav"
                entries.setdefault(session, []).append({"path": wav, "label": label})
    for part, names in (("test", ["Session1"]), ("train", sorted(entries.keys() - {"Session1"}))):
        path = scratch / "meta_data" / "Session1" / f"{part}_meta_data.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = [entry for name in names for entry in entries[name]]
        path.write_text(
            json.dumps({"labels": classes, "num_utts": len(chosen), "meta_data": chosen})
        )
    datarc = {
        "root": str(root),
        "meta_data": str(scratch / "meta_data"),
        "test_fold": "fold1",
        "pre_load": False,
        "valid_ratio": 0.3,
        **batches(),
    }
    return {"datarc": datarc, "modelrc": UTTERANCE_HEAD}, []


def _lengths(corpus: Path, scratch: Path, *sets: str) -> Path:
    """The tables of utterances that s3prl's preprocessing writes for its buckets."""
    folder = scratch / "len_for_bucket"
    folder.mkdir(exist_ok=True)
    root = corpus / "LibriSpeech"
    for name in sets:
        with (folder / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file_path", "length", "label"])
            for wav in sorted((root / name).rglob("*.flac")):
                table.writerow([wav.relative_to(root), soundfile.info(wav).frames // 160, 0])
    return folder


def asr(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    characters = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"
    (scratch / "char.dict").write_text("".join(f"{symbol} 1\n" for symbol in characters))
    datarc = {
        "train": ["train-clean-100"],
        "dev-clean": ["dev-clean"],
        "test-clean": ["test-clean"],
        "libri_root": str(corpus / "LibriSpeech"),
        "bucket_file": str(_lengths(corpus, scratch, "train-clean-100", "dev-clean", "test-clean")),
        "dict_path": str(scratch / "char.dict"),
        "zero_infinity": True,
        "num_workers": 0,
        "batch_size": 2,
        "eval_batch_size": 2,
        "decoder_args": {"decoder_type": "None"},
    }
    return {"datarc": datarc, "modelrc": RECURRENT_HEAD}, ["dev-clean"]


def ctc(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    """s3prl's published package lacks its corpora: provide one."""
    folder = copy_expert("ctc", scratch) / "corpus"
    folder.mkdir()
    (folder / "librispeech.py").write_text(LIBRISPEECH)
    (scratch / "characters.txt").write_text(
        "".join(f"{c}\n" for c in " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    )
    settings = {
        "corpus": {
            "name": "librispeech",
            "path": str(corpus / "LibriSpeech"),
            "train": ["train-clean-100"],
            "dev": ["dev-clean"],
            "test": ["test-clean"],
            "bucketing": False,
            "batch_size": 2,
            "num_workers": 0,
        },
        "text": {"mode": "character", "vocab_file": str(scratch / "characters.txt")},
        "model": {**FRAME_HEAD, "zero_infinity": True},
        "save_best_on": ["dev"],
        "metric_higher_better": False,
        "metric": ["cer", "wer"],
    }
    return settings, ["dev", "test"]


LIBRISPEECH = """
from pathlib import Path

import torchaudio
from torch.utils.data import Dataset


class LibriDataset(Dataset):
    def __init__(self, split, tokenizer, bucket_size, path, **settings):
        self.items = []
        for name in split:
            for transcript in sorted(Path(path, name).rglob("*.trans.txt")):
                for line in transcript.read_text().splitlines():
                    utterance, _, text = line.partition(" ")
                    flac = transcript.with_name(f"{utterance}.flac")
                    assert torchaudio.info(flac).sample_rate == 16000
                    self.items.append((flac, tokenizer.encode(text)))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]
"""


def _alignments(corpus: Path, scratch: Path) -> Settings:
    root = corpus / "LibriSpeech"
    names = sorted((root / "train-clean-100").rglob("*.flac"))
    folder = scratch / "alignments"
    folder.mkdir(exist_ok=True)
    lines = [
        " ".join([name.stem, *(str(i % 41) for i in range(soundfile.info(name).frames // 160))])
        for name in names
    ]
    (folder / "converted_aligned_phones.txt").write_text("\n".join(lines) + "\n")
    # A tenth of the training list is s3prl's dev split; an odd batch at the end is left out.
    train = [name.stem for name in names]
    padded = [*train, *(f"missing-{i}" for i in range(10 * len(train)))]
    (folder / "train_split.txt").write_text("\n".join(padded) + "\n")
    (folder / "test_split.txt").write_text("\n".join(train[:4]) + "\n")
    return {
        "libri_root": str(root),
        "bucket_file": str(_lengths(corpus, scratch, "train-clean-100")),
        "phone_path": str(folder),
        "split_file": str(folder),
        "train_dev_seed": _seed_that_leaves_some(padded, set(train)),
        "num_workers": 0,
        "train_batch_size": 1,
        "eval_batch_size": 1,
    }


def _seed_that_leaves_some(listed: list[str], present: set[str]) -> int:
    """A seed for s3prl's shuffle that leaves real utterances in both parts of its split."""
    import random

    for seed in range(100):
        order = list(listed)
        random.Random(seed).shuffle(order)
        cut = int(len(order) * 0.9)
        if present & set(order[:cut]) and present & set(order[cut:]):
            return seed
    raise AssertionError("no such seed")


def phone_linear(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    return {"datarc": _alignments(corpus, scratch), "modelrc": {}}, []


def phone_1hidden(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    settings, splits = phone_linear(corpus, scratch)
    return {**settings, "modelrc": {"hidden_size": 8, "dropout": 0.1}}, splits


def phone_linear_concat(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    settings, splits = phone_linear(corpus, scratch)
    return {**settings, "modelrc": {"concat_n_frames": 3}}, splits


def speaker_linear_utter_libri(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    return {"datarc": _alignments(corpus, scratch), "modelrc": {}}, []


speaker_linear_frame_libri = speaker_linear_utter_libri


def timit_phone_linear(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    """Utterances of the tiny corpus under names of TIMIT."""
    wavs = iter(sorted((corpus / "VoxCeleb1").rglob("*.wav")))
    root, folder, lengths = scratch / "TIMIT", scratch / "phones", scratch / "len_for_bucket"
    folder.mkdir()
    lengths.mkdir()
    phones, lists = [], {"TRAIN": [], "TEST": []}
    tables = {"TRAIN": ["file_path,length"], "TEST": ["file_path,length"]}
    # MDAB0 is one of the core test speakers, MDVC0 is not, so that it is in the dev split.
    for part, speaker in (("TRAIN", "FCJF0"), ("TEST", "MDAB0"), ("TEST", "MDVC0")):
        for sentence in ("SI1027", "SX37"):
            wav = next(wavs)
            path = Path(part, "DR1", speaker, f"{sentence}.wav")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(wav, root / path)
            frames = soundfile.info(wav).frames // 160
            name = f"DR1-{speaker}-{sentence}"
            lists[part].append(name)
            phones.append(" ".join([name, *(str(i % 39) for i in range(frames))]))
            tables[part].append(f"{path},{frames}")
    (folder / "converted_aligned_phones.txt").write_text("\n".join(phones) + "\n")
    for part, names in lists.items():
        (folder / f"{part.lower()}_split.txt").write_text("\n".join(names) + "\n")
        (lengths / f"{part}.csv").write_text("\n".join(tables[part]) + "\n")
    datarc = {
        "data_root": str(root),
        "phone_path": str(folder),
        "bucket_file": str(lengths),
        "num_workers": 0,
        "train_batch_size": 1,
        "eval_batch_size": 1,
    }
    return {"datarc": datarc, "modelrc": {}}, []


def timit_phone_1hidden(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    settings, splits = timit_phone_linear(corpus, scratch)
    return {**settings, "modelrc": {"hidden_size": 8, "dropout": 0.1}}, splits


def timit_phone_linear_concat(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    settings, splits = timit_phone_linear(corpus, scratch)
    return {**settings, "modelrc": {"concat_n_frames": 3}}, splits


def timit_phone(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    settings, splits = timit_phone_linear(corpus, scratch)
    head = {"kernels": [3, 5], "cnn_size": 4, "hidden_size": 8, "dropout": 0.1}
    return {**settings, "modelrc": {"select": "ConvBank", "ConvBank": head}}, splits


def mosei(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    wavs = sorted((corpus / "VoxCeleb1").rglob("*.wav"))[:6]
    rows = ["file,index,label2a,label2b,label6,label7,split"]
    for number, wav in enumerate(wavs):
        split = ["train", "dev", "test"][number % 3]
        target = scratch / "CMU-MOSEI" / "Segmented_Audio" / split / f"video_{number}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(wav, target)
        rows.append(f"video,{number},{number % 2},0,0,0,{number % 3}")
    (scratch / "labels.csv").write_text("\n".join(rows) + "\n")
    datarc = {
        "data_dir": str(scratch / "CMU-MOSEI"),
        "label_path": str(scratch / "labels.csv"),
        "num_class": 2,
        **batches(),
        "num_workers": 1,
    }
    return {"datarc": datarc, "modelrc": {"input_dim": 8}}, []


def voxceleb1(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    copy_expert("voxceleb1", scratch)
    root = corpus / "VoxCeleb1"
    datarc = {
        "file_path": str(root),
        "meta_data": str(root / "iden_split.txt"),
        "max_timestep": 16000,
        **batches(),
    }
    return {"datarc": datarc, "modelrc": UTTERANCE_HEAD}, []


def sv_voxceleb1(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    folder = copy_expert("sv_voxceleb1", scratch)
    root = corpus / "VoxCeleb1"
    wavs = sorted((root / "dev" / "wav").rglob("*.wav"))
    # s3prl measures the trimmed utterances once, with a dozen processes, and keeps that here.
    (folder / ".wav_lengths").mkdir()
    lengths = [[wav.parts[-3:] for wav in wavs], [32001] * len(wavs)]
    torch.save(lengths, folder / ".wav_lengths" / "Voxceleb1_length.pt")
    datarc = {
        "vad_config": {"min_sec": 32000},
        "file_path": str(root),
        "train_meta_data": "",
        "dev_meta_data": "/dev/null",
        "test_meta_data": str(root / "veri_test2.txt"),
        "max_timestep": 16000,
        **batches(),
    }
    modelrc = {
        "module": "XVector",
        "input_dim": 8,
        "agg_module": "SP",
        "utter_module": "UtteranceExtractor",
        "module_config": {"XVector": {"agg_dim": 12, "dropout_p": 0.0, "batch_norm": False}},
        "ObjectiveLoss": "AMSoftmaxLoss",
        "LossConfig": {"AMSoftmaxLoss": {"s": 30.0, "m": 0.4}},
    }
    # It scores every split by the trials of the test split.
    return {"datarc": datarc, "modelrc": modelrc}, ["test"]


def diarization(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    root = scratch / "Libri2Mix"
    shutil.copytree(corpus / "Libri2Mix", root)
    for table in root.glob("*/wav.scp"):
        # s3prl opens what is written there, from wherever it runs.
        pairs = [line.split(maxsplit=1) for line in table.read_text().splitlines()]
        table.write_text("".join(f"{name} {table.parent / path}\n" for name, path in pairs))
    settings = {
        "datarc": {
            "chunk_size": 200,
            "subsampling": 1,
            "label_delay": 0,
            "num_speakers": 2,
            "rate": 16000,
            "frame_shift": None,
        },
        "loaderrc": {
            "num_workers": 0,
            "train_batchsize": 2,
            "eval_batchsize": 1,
            **{f"{split}_dir": str(root / split) for split in ("train", "dev", "test")},
        },
        "scorerc": {"save_predictions": False},
        "modelrc": {"rnn_layers": 1, "hidden_size": 8},
    }
    return settings, ["dev"]


def example(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    """s3prl's template, with 4 random waveforms of 1 s instead of 200 of up to 20 s."""
    path = copy_expert("example", scratch) / "dataset.py"
    source = path.read_text()
    for line, shorter in (
        ("EXAMPLE_WAV_MIN_SEC = 5\n", "EXAMPLE_WAV_MIN_SEC = 1\n"),
        ("EXAMPLE_WAV_MAX_SEC = 20\n", "EXAMPLE_WAV_MAX_SEC = 1\n"),
        ("EXAMPLE_DATASET_SIZE = 200\n", "EXAMPLE_DATASET_SIZE = 4\n"),
    ):
        assert line in source
        source = source.replace(line, shorter)
    path.write_text(source)
    return {"datarc": batches(), "modelrc": {"input_dim": 8}}, []


def mos_prediction(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    """Judges are numbered in order of appearance, as s3prl writes their names.

    It does that in a way that pandas 3 refuses, and that changes nothing here.
    """
    wavs = sorted((corpus / "VoxCeleb1").rglob("*.wav"))
    early, late = scratch / "vcc2016", scratch / "vcc2018"
    converted, unified = late / "Converted_speech_of_submitted_systems", early / "unified_speech"
    converted.mkdir(parents=True)
    unified.mkdir(parents=True)
    (late / "VCC2018_Results").mkdir()
    systems = []
    for part in ("train", "valid", "test"):
        rows = ["FILE,MEAN,MOS,JUDGE"]
        for number in range(3):
            name = f"{part[0]}{number}0_{part[0]}{number}_HUB.wav"
            shutil.copy(wavs[number], converted / name)
            systems.append(name[:3] + name[-8:-4])
            rows.append(f"{name},{number + 1.5},{number + 1},{number}")
        (late / f"{part}_judge.csv").write_text("\n".join(rows) + "\n")
    _system_scores(late / "VCC2018_Results" / "system_mos_all_trackwise.csv", systems)
    for number in range(3):
        shutil.copy(wavs[number], unified / f"S{number}_utterance.wav")
    _system_scores(early / "system_mos.csv", ["S0", "S1", "S2"])
    datarc = {"vcc2018_file_path": str(late), "vcc2016_file_path": str(early), **batches()}
    modelrc = {"projector_dim": 8, "clipping": True, "attention_pooling": True}
    weights = {"segment_weight": 1, "bias_weight": 4}
    splits = ["dev", "vcc2018_test", "vcc2016_test"]
    return {"datarc": datarc, "modelrc": modelrc | weights}, splits


def _system_scores(path: Path, systems: list[str]) -> None:
    scores = ",".join(str(1 + number % 4) for number in range(len(systems)))
    path.write_text(f"{','.join(systems)}\n{scores}\n")


INTENT_HEAD = {
    "input_dim": 8,
    "agg_module": "SAP",
    "module": "TransformerEncoder",
    "hparams": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "share_layer": False,
        "pre_layer_norm": False,
    },
}
# As in s3prl's config files: the mask of a larger batch does not fit the encoder's heads.
SINGLY = {"num_workers": 0, "train_batch_size": 1, "eval_batch_size": 1}


def audio_snips(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    wavs = sorted((corpus / "VoxCeleb1").rglob("*.wav"))
    root = scratch / "SNIPS"
    labels, sounds = root / "data" / "nlu_annotation", root / "audio_Ivy" / "snips"
    labels.mkdir(parents=True)
    sounds.mkdir(parents=True)
    for part in ("train", "valid", "test"):
        rows = ["u_id\tintent"]
        for number in range(4):
            samples, _ = soundfile.read(wavs[number])
            soundfile.write(sounds / f"{part}-{number}.mp3", samples[:16000], 22050)
            rows.append(f"{part}-{number}\tIntent{number % 2}")
        (labels / part).write_text("\n".join(rows) + "\n")
    speakers = {"train_speakers": ["Ivy"], "test_speakers": ["Ivy"]}
    datarc = {"file_path": str(root), **speakers, **SINGLY}
    return {"datarc": datarc, "modelrc": INTENT_HEAD}, []


def atis(corpus: Path, scratch: Path) -> tuple[Settings, list[str]]:
    wavs = sorted((corpus / "VoxCeleb1").rglob("*.wav"))
    root = scratch / "atis"
    (root / "nlu_iob").mkdir(parents=True)
    for part in ("train", "dev", "test"):
        (root / part).mkdir()
        rows = []
        for number in range(4):
            shutil.copy(wavs[number], root / part / f"{part}{number}.wav")
            rows.append(f"{part}{number} BOS a flight EOS\tO O O atis_{number % 2}")
        (root / "nlu_iob" / f"iob.{part}").write_text("\n".join(rows) + "\n")
    datarc = {"file_path": str(root), **SINGLY}
    return {"datarc": datarc, "modelrc": INTENT_HEAD}, []


BUILDERS: dict[str, Callable[[Path, Path], tuple[Settings, list[str]]]] = {
    "asr": asr,
    "atis": atis,
    "audio_snips": audio_snips,
    "ctc": ctc,
    "diarization": diarization,
    "emotion": emotion,
    "example": example,
    "fluent_commands": fluent_commands,
    "mos_prediction": mos_prediction,
    "mosei": mosei,
    "phone_1hidden": phone_1hidden,
    "phone_linear": phone_linear,
    "phone_linear_concat": phone_linear_concat,
    "speaker_linear_frame_libri": speaker_linear_frame_libri,
    "speaker_linear_utter_libri": speaker_linear_utter_libri,
    "speech_commands": speech_commands,
    "sv_voxceleb1": sv_voxceleb1,
    "timit_phone": timit_phone,
    "timit_phone_1hidden": timit_phone_1hidden,
    "timit_phone_linear": timit_phone_linear,
    "timit_phone_linear_concat": timit_phone_linear_concat,
    "voxceleb1": voxceleb1,
}


def make(folder: str, corpus: Path, scratch: Path) -> str:
    """Prepare everything for an expert; returns its spec for `-d`."""
    settings, splits = BUILDERS[folder](corpus, scratch)
    copy = scratch / "downstream" / folder
    config = write_config(scratch / f"{folder}.yaml", settings, splits or None)
    if not copy.is_dir():
        return f"s3prl:{folder}"
    shutil.copy(config, copy / "config.yaml")
    return f"s3prl:{copy}"
