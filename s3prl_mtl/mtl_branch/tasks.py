"""Translate the task blocks of a branch config to the settings of the tasks here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.mtl_branch.block import BranchBlock, Notes

OWN_METRIC = "each task has its own metrics, the first one chooses the best checkpoint."
ONE_CORPUS = "the folders of the corpus have fixed names."
VOCABULARY = "the vocabulary is built from the corpus, as SUPERB defines it."
GREEDY = "decoding is greedy, unless `decoder_type` is kenlm."
OTHER_HEAD = "it belongs to another head than `select` names."
HEADS = ("Wav2Letter", "FrameLevel", "UtteranceLevel", "RNNs", "DeepModel")

Settings = dict[str, Any]


def _asr(block: BranchBlock, evaluated: Sequence[str]) -> Settings:
    datarc: Settings = {}
    part = block.part("datarc")
    datarc["libri_root"] = part.path_of("libri_root")
    part.keep(datarc, "num_workers", "train_batch_size", "eval_batch_size", "zero_infinity")
    part.keep(datarc, "train")
    for kind in ("dev", "test"):
        # In the branch a split lists sets of LibriSpeech; here each evaluated set is a split.
        sets: list[str] = []
        for key in [key for key in part.left() if key.partition("-")[0] == kind]:
            names = _list(part.take(key))
            sets += [name for name in names if key in evaluated and name not in sets]
            if key in evaluated and names != [key]:
                part.notes.add(f"{part.path}.{key}", "each set is evaluated by itself.")
        if sets:
            datarc[kind] = sets
    part.drop("bucket_file", "lengths are read from the audio; `bucketed` groups by them.")
    decoder = _decoder(part.part("decoder_args"))
    head = _head(block.part("modelrc"), "project_dim")
    return {"datarc": datarc, **({"decoder": decoder} if decoder else {}), "modelrc": head}


def _decoder(block: BranchBlock) -> Settings:
    """The settings of a decoder with a language model; none for greedy decoding."""
    kind = str(block.take("decoder_type", "None"))
    if kind != "kenlm":
        for key in block.left():
            block.take(key)  # Settings of a decoder that is not used.
        if kind != "None":
            block.notes.add(block.path, GREEDY)
        return {}
    settings: Settings = {
        "lm": block.path_of("kenlm_model"),
        "lexicon": block.path_of("lexicon"),
    }
    block.keep(settings, "beam", "beam_threshold", "lm_weight", "word_score")
    block.expect("nbest", [1], "`predict --nbest` lists several transcripts.")
    block.expect("criterion", ["ctc"], "the head is trained by CTC.")
    block.expect("unk_weight", ["-math.inf"], "only words of the lexicon are recognised.")
    block.expect("sil_weight", [0], "word boundaries have no score of their own.")
    return settings


def _ctc(block: BranchBlock, corpus: BranchBlock, datarc: Settings) -> Settings:
    """The settings of pr and sf, which share an expert in the branch."""
    corpus.keep(datarc, "num_workers")
    corpus.move(datarc, bucketing="bucketed", batch_size="train_batch_size")
    block.drop("text", VOCABULARY)
    for key in ("save_best_on", "metric_higher_better", "metric"):
        block.drop(key, OWN_METRIC)
    model = block.part("model")
    settings: Settings = {}
    model.keep(settings, "zero_infinity")
    return {"datarc": datarc, "model": {**settings, **_head(model, "project_dim")}}


def _pr(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    corpus = block.part("corpus")
    corpus.take("name")
    datarc: Settings = {"libri_root": corpus.path_of("path")}
    if "lexicon" in corpus:
        files = _list(corpus.take("lexicon"))
        datarc["lexicon"] = [corpus.locate("lexicon", file) for file in files]
    corpus.keep(datarc, "train", "dev", "test")
    return _ctc(block, corpus, datarc)


def _sf(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    corpus = block.part("corpus")
    corpus.take("name")
    datarc: Settings = {"snips_root": corpus.path_of("path")}
    for split in ("train", "valid", "test"):
        corpus.expect(split, ([split], split), ONE_CORPUS)
    corpus.keep(datarc, "train_speakers", "valid_speakers", "test_speakers")
    return _ctc(block, corpus, datarc)


def _ks(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    datarc: Settings = {}
    part = block.part("datarc")
    for key in ("speech_commands_root", "speech_commands_test_root"):
        datarc[key] = part.path_of(key)
    if "batch_size" in part:
        datarc["train_batch_size"] = datarc["eval_batch_size"] = part.take("batch_size")
    part.keep(datarc, "num_workers", "train_batch_size", "eval_batch_size", "max_timestep")
    return {"datarc": datarc, "modelrc": _head(block.part("modelrc"), "projector_dim")}


def _ic(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    part = block.part("datarc")
    datarc: Settings = {"file_path": part.path_of("file_path")}
    part.keep(datarc, "num_workers", "train_batch_size", "eval_batch_size", "max_timestep")
    return {"datarc": datarc, "modelrc": _head(block.part("modelrc"), "projector_dim")}


def _sid(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    part = block.part("datarc")
    datarc: Settings = {key: part.path_of(key) for key in ("file_path", "meta_data")}
    part.keep(datarc, "num_workers", "train_batch_size", "eval_batch_size", "max_timestep")
    return {"datarc": datarc, "modelrc": _head(block.part("modelrc"), "projector_dim")}


def _er(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    part = block.part("datarc")
    datarc: Settings = {"root": part.path_of("root")}
    part.keep(datarc, "num_workers", "train_batch_size", "eval_batch_size", "max_timestep")
    part.keep(datarc, "valid_ratio", "test_fold")
    part.drop("pre_load", "audio is read by `num_workers` processes as it is needed.")
    part.drop("meta_data", "the labels are read from the corpus itself.")
    return {"datarc": datarc, "modelrc": _head(block.part("modelrc"), "projector_dim")}


def _sv(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    part = block.part("datarc")
    datarc: Settings = {"file_path": part.path_of("file_path")}
    part.part("vad_config").expect("min_sec", (32_000,), "utterances under 2 s are left out.")
    part.drop("train_meta_data", "every speaker of dev/wav trains but the 40 of the test trials.")
    for key, name in (("dev_meta_data", "dev_trials"), ("test_meta_data", "test_trials")):
        if key in part:
            datarc[name] = part.path_of(key)
    part.keep(datarc, "num_workers", "train_batch_size", "eval_batch_size", "max_timestep")
    modelrc: Settings = {}
    model = block.part("modelrc")
    model.keep(modelrc, "module", "agg_module", "utter_module", "ObjectiveLoss", "input_dim")
    for key, chosen in (("module_config", "module"), ("LossConfig", "ObjectiveLoss")):
        choices = model.part(key)
        name = str(modelrc.get(chosen))
        if name in choices:
            modelrc[key] = {name: choices.take(name)}
        for other in choices.left():
            choices.drop(other, f"`{chosen}` names another one.")
    return {"datarc": datarc, "modelrc": modelrc}


def _sd(block: BranchBlock, _evaluated: Sequence[str]) -> Settings:
    datarc: Settings = {}
    part = block.part("datarc")
    part.keep(datarc, "chunk_size", "frame_shift", "num_speakers")
    part.expect("subsampling", (1,), "every label frame is used.")
    part.expect("use_last_samples", (True,), "what remains of a recording is a chunk too.")
    part.expect("label_delay", (0,), "labels are not delayed.")
    part.expect("rate", (16_000,), "audio is resampled to 16 kHz.")
    loader = block.part("loaderrc")
    loader.keep(datarc, "num_workers")
    loader.move(datarc, train_batchsize="train_batch_size", eval_batchsize="eval_batch_size")
    folders = {
        split: Path(path)
        for split in ("train", "dev", "test")
        if (path := loader.path_of(f"{split}_dir")) is not None
    }
    parents = {folder.parent for folder in folders.values()}
    if len(parents) > 1 or any(folder.name != split for split, folder in folders.items()):
        raise UserError(
            "The folders of diarization must be DIR/train, DIR/dev and DIR/test, not "
            f"{', '.join(map(str, folders.values()))}.",
            where=f"{loader.path}.train_dir, dev_dir and test_dir in {loader.file}",
            fix="Make a folder with links of these names to them.",
            code="invalid-value",
        )
    if parents:
        datarc["data_dir"] = str(parents.pop())
    block.drop("scorerc", "predictions are scored without being written.")
    modelrc: Settings = {}
    block.part("modelrc").keep(modelrc, "rnn_layers", "hidden_size")
    return {"datarc": datarc, "modelrc": modelrc}


def _head(model: BranchBlock, width: str) -> Settings:
    """The settings of the head that `select` names."""
    settings: Settings = {}
    model.keep(settings, width, "select")
    for head in HEADS:
        if head == settings.get("select"):
            model.keep(settings, head)
        else:
            model.drop(head, OTHER_HEAD)
    return settings


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


_HEADS_HERE = {
    "asr": ("RNNs", "FrameLevel"),
    "sf": ("RNNs", "FrameLevel"),
    "pr": ("FrameLevel",),
    **dict.fromkeys(("ks", "ic", "sid", "er"), ("UtteranceLevel",)),
}
_SPLITS = {"ic": {"dev": "valid"}}
"""Splits with another name here than in the branch, by task: {theirs: ours}."""
_CTC_TASKS = {"libriphone": "pr", "snips": "sf"}
_TASKS = {
    "asr": "asr",
    "speech_commands": "ks",
    "fluent_commands": "ic",
    "voxceleb1": "sid",
    "emotion": "er",
    "sv_voxceleb1": "sv",
    "diarization": "sd",
}
_READERS: dict[str, Callable[[BranchBlock, Sequence[str]], Settings]] = {
    "asr": _asr,
    "pr": _pr,
    "sf": _sf,
    "ks": _ks,
    "ic": _ic,
    "sid": _sid,
    "er": _er,
    "sv": _sv,
    "sd": _sd,
}


def task_of(block: BranchBlock) -> str:
    """Our name of the task of a block, from the expert that its `folder` names; takes the key.

    Raises:
        UserError: the expert is not that of one of the nine tasks.
    """
    folder = block.take("folder")
    if folder == "ctc":
        corpus = block.part("corpus")
        name = str(corpus.take("name")).lower()
        for key in corpus.left():
            corpus.take(key)
        if name in _CTC_TASKS:
            return _CTC_TASKS[name]
        raise UserError(
            f"The expert `ctc` takes the corpora libriphone (pr) and snips (sf), not {name!r}.",
            where=f"{block.path}.corpus.name in {block.file}",
            fix="Use s3prl's own expert: -d s3prl:ctc.",
            code="not-supported",
        )
    if not isinstance(folder, str) or folder not in _TASKS:
        raise UserError(
            f"The expert {folder!r} is not that of one of the nine tasks.",
            where=f"{block.path}.folder in {block.file}",
            fix=f"Use s3prl's own expert: -d s3prl:{folder}, and leave this block out.",
            code="not-supported",
        )
    return _TASKS[folder]


def single_task_of(arguments: Mapping[str, Any], config: Mapping[str, Any], file: Path) -> str:
    """Our name of the task of a run of s3prl that trained a single one.

    Args:
        arguments: `Args` of its checkpoint.
        config: `Config` of its checkpoint.
        file: the checkpoint.

    Raises:
        UserError: as :func:`task_of`.
    """
    corpus = (config.get("downstream_expert") or {}).get("corpus") or {}
    values = {"folder": arguments.get("downstream"), "corpus": corpus}
    return task_of(BranchBlock(values, "Args.downstream", file, Notes()))


def split_of(task: str, split: str) -> str:
    """Our name of a split of a task; a name without a translation is returned unchanged."""
    return _SPLITS.get(task, {}).get(split, split)


def read_task(task: str, block: BranchBlock, evaluated: Sequence[str]) -> Settings:
    """The `downstream_expert` of a task; settings that the file leaves out keep their default.

    Args:
        task: our name of the task.
        block: its block in the file.
        evaluated: the splits of its `looprc.eval_dataloaders`.

    Raises:
        UserError: a head that the task does not have here.
    """
    read = _READERS[task](block, evaluated)
    part = "model" if "model" in read else "modelrc"
    heads, chosen = _HEADS_HERE.get(task, ()), read[part].get("select")
    if heads and chosen is not None and chosen not in heads:
        folder = next((name for name, ours in _TASKS.items() if ours == task), "ctc")
        raise UserError(
            f"The task {task!r} has no head {chosen!r} here.",
            where=f"{block.path}.{part}.select in {block.file}",
            fix=f"Use {' or '.join(heads)}; or use s3prl's own expert, which has all of its "
            f"heads: -d s3prl:{folder}, and leave this block out.",
            code="unknown-name",
        )
    return {
        name: {key: value for key, value in part.items() if value is not None}
        for name, part in read.items()
    }
