"""Read and write HuBERT checkpoints of fairseq without fairseq."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path
from s3prl_mtl.fileio.safe_torch import (
    CLASS_KEY,
    NamingPickle,
    from_plain,
    safe_load,
    to_plain,
)
from s3prl_mtl.upstreams.hubert.config import SPECIAL_SYMBOLS, HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert, build_hubert
from s3prl_mtl.upstreams.hubert.transformers_format import folder_of, read_transformers_folder

logger = logging.getLogger(__name__)

KIND = "fairseq HuBERT checkpoint"
CONVERTED = {"model_cfg", "task_cfg", "model_weight"}
"""Keys of the files that s3prl converts from fairseq's."""
FINE_TUNED = {"hubert_ctc": "w2v_encoder.w2v_model.", "hubert_seq2seq": "encoder.w2v_model."}
"""Fine-tuned models: the prefix of the encoder's parameters."""
OF_PRETRAINING = ("final_proj.", "label_embs_concat", "target_glu.")
WITH_SETTINGS = (
    "Give the folder of transformers that has these weights as model.safetensors or "
    "pytorch_model.bin, with config.json and preprocessor_config.json: -k FOLDER."
)
# The optimizer's state is two thirds of a published file and is not needed.
NOT_IN_HEADER = ("model", "last_optimizer_state")


@dataclass(frozen=True)
class FairseqCheckpoint:
    """The contents of a fairseq file.

    Args:
        config: the architecture.
        state_dict: the parameters under fairseq's names; memory-mapped, so copy them.
        header: everything else except the optimizer's state, as plain values; None for a
            fine-tuned model, whose other entries are not those of a HuBERT.
    """

    config: HubertConfig
    state_dict: dict[str, Tensor]
    header: dict[str, Any] | None


def read_fairseq_checkpoint(path: str | os.PathLike[str]) -> FairseqCheckpoint:
    """Read a fairseq HuBERT checkpoint (``.pt``) without fairseq and without executing its pickle.

    Files that s3prl converted (``upstream.pt`` of ``hubert_local``) are read too.

    Raises:
        UserError: not a checkpoint, truncated, of another model, or with objects of other classes;
            of files in another known format the error names the flag that takes them.
    """
    path = Path(os.path.expanduser(path))
    where = str(path)
    _refuse_transformers(path)
    loaded = safe_load(path, kind=KIND)
    if isinstance(loaded, Mapping) and loaded.keys() >= CONVERTED:
        loaded = _from_converted(loaded, where)
    state_dict = loaded.get("model") if isinstance(loaded, Mapping) else None
    if not isinstance(state_dict, Mapping) or not any(map(loaded.get, ("cfg", "args"))):
        if isinstance(loaded, Mapping):
            _refuse_other_format(loaded, path)
        held = ", ".join(map(str, list(loaded)[:6])) if isinstance(loaded, Mapping) else "no dict"
        raise UserError(
            "This PyTorch file is not a fairseq checkpoint: it lacks 'model' together with 'cfg' "
            f"or 'args' (found: {held}).",
            where=where,
            fix="Give a checkpoint written by fairseq, or converted from one by s3prl.",
            code="checkpoint-format",
        )
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"The parameter {name} is a {type(value).__name__} instead of a tensor.",
                where=where,
                fix="Download the checkpoint again.",
                code="checkpoint-format",
            )
    entries = {key: to_plain(value) for key, value in loaded.items() if key not in NOT_IN_HEADER}
    header: dict[str, Any] | None = entries
    model_settings, task_settings = _settings(entries, where)
    if _name(model_settings) in FINE_TUNED:
        header = None
        model_settings, task_settings, state_dict = _pretrained_part(
            model_settings, task_settings, state_dict, where
        )
    name = _name(model_settings)
    if name != "hubert":
        key = "args.arch" if "arch" in model_settings else "cfg.model._name"
        raise UserError(
            f"This is a fairseq checkpoint of {name!r}; only HuBERT ('hubert') and HuBERT "
            "fine-tuned by fairseq are supported.",
            where=f"{key}={name!r} in {where}",
            fix="Give a HuBERT checkpoint, such as hubert_base_ls960.pt.",
            code="checkpoint-format",
        )
    final_proj = state_dict.get("final_proj.weight")
    embeddings = state_dict.get("label_embs_concat")
    config = HubertConfig.from_fairseq(
        model_settings,
        task_settings,
        final_proj_dim=0 if final_proj is None else final_proj.shape[0],
        label_embeddings=(0, 0) if embeddings is None else _matrix_shape(embeddings, where),
        where=where,
    )
    return FairseqCheckpoint(config, dict(state_dict), header)


def _refuse_transformers(path: Path) -> None:
    """Refuse a folder or file of transformers, whose weights have other names."""
    folder = folder_of(path)
    if folder is not None:
        what, fix = "of transformers", f"Load it with `load_upstream('hubert', {str(folder)!r})`."
    elif path.suffix == ".safetensors" or _begins_as_safetensors(path):
        what, fix = "weights without settings", WITH_SETTINGS
    else:
        return
    raise _other_format(path, what, fix)


def _begins_as_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON header, and that header."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        beginning = file.read(10)
    return beginning[8:] in (b'{"', b"{}") and 2 <= int.from_bytes(beginning[:8], "little") < 10**8


def _refuse_other_format(content: Mapping[Any, Any], path: Path) -> None:
    """Refuse the checkpoints of known programs with the flag that takes them."""
    names = [str(name) for name in content]
    if content and all(isinstance(value, Tensor) for value in content.values()):
        if any(".attention.k_proj." in name for name in names):
            raise _other_format(path, "weights without settings", WITH_SETTINGS)
        return
    if "Format" in content or {"Featurizer", "Args"} <= set(names) or "Downstream" in content:
        raise _other_format(
            path,
            "a checkpoint of a run",
            f"Start from its encoder with --init_upstream_ckpt {path}, from all of it with -i, or "
            "resume it with -e.",
        )


def _other_format(path: Path, what: str, fix: str) -> UserError:
    return UserError(
        f"{path.name} is not a fairseq checkpoint but {what}.",
        where=f"-k {path}",
        fix=fix,
        code="checkpoint-format",
    )


def _from_converted(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A fairseq checkpoint from a file that s3prl converted.

    Raises:
        UserError: its settings are not mappings.
    """
    model, task = to_plain(content["model_cfg"]), to_plain(content["task_cfg"])
    if not isinstance(model, Mapping) or not isinstance(task, Mapping):
        raise UserError(
            "The settings of the converted checkpoint are not mappings.",
            where=f"model_cfg, task_cfg of {where}",
            fix="Convert it again with s3prl.",
            code="checkpoint-format",
        )
    weights = content["model_weight"]
    symbols = [
        None if listed is None else list(listed)
        for listed in content.get("dictionaries_symbols") or [[]]
    ]
    return {
        "cfg": {"model": model, "task": task, "criterion": {"_name": "hubert"}},
        "model": weights,
        **_entries_of_fairseq(symbols),
    }


def load_hubert(
    path: str | os.PathLike[str],
    *,
    layerdrop: float = 0.0,
    feature_grad_mult: float | None = None,
) -> Hubert:
    """The encoder of a HuBERT checkpoint.

    Args:
        path: fairseq's ``.pt`` file, or a folder of transformers.
        layerdrop: probability of skipping a layer in training; overrides the checkpoint's.
        feature_grad_mult: scale of the gradient into the convolutions, 0 freezes them; None
            keeps the checkpoint's.

    Raises:
        UserError: see :func:`read_fairseq_checkpoint` and :func:`read_transformers_folder`; or the
            parameters do not fit the settings.
    """
    path = Path(os.path.expanduser(path))
    folder = folder_of(path)
    if folder is not None:
        checkpoint = FairseqCheckpoint(*read_transformers_folder(folder), None)
    else:
        checkpoint = read_fairseq_checkpoint(path)
    config = replace(checkpoint.config, encoder_layerdrop=layerdrop)
    if feature_grad_mult is not None:
        config = replace(config, feature_grad_mult=feature_grad_mult)
    return build_hubert(config, checkpoint.state_dict, checkpoint.header, where=str(path))


def write_fairseq_checkpoint(path: str | os.PathLike[str], model: Hubert) -> None:
    """Write an encoder so that fairseq 0.12.2's ``load_model_ensemble_and_task`` loads it strictly.

    Settings, dictionaries and history come from the file that the encoder was read from, else from
    :func:`make_header`. The write is atomic.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    header = model.fairseq_header
    if header is None:
        header = make_header(model.config)
    state = OrderedDict(
        (name, value.detach().to("cpu").contiguous()) for name, value in model.state_dict().items()
    )
    content = {
        **{key: from_plain(value) for key, value in header.items()},
        "model": state,
        "last_optimizer_state": None,
    }
    # Given a path, torch.save would store its name; equal contents should be equal bytes.
    with atomic_path(path) as partial, partial.open("wb") as file:
        torch.save(content, file, pickle_module=NamingPickle)


def make_header(config: HubertConfig) -> dict[str, Any]:
    """The entries that fairseq requires beside the parameters, for an encoder built here."""
    labels = config.label_embeddings[0]
    # fairseq builds label embeddings unless the dictionary is None.
    symbols = (
        [*SPECIAL_SYMBOLS, *map(str, range(labels - len(SPECIAL_SYMBOLS)))] if labels else None
    )
    not_fairseq = ("normalize", "final_proj_dim", "label_embeddings")
    model = {key: value for key, value in config.to_dict().items() if key not in not_fairseq}
    rate = 16_000 / config.total_stride
    model.update(
        _name="hubert",
        label_rate=rate,
        layer_type="transformer",
        final_dim=config.label_embeddings[1],
        untie_final_proj=False,
        conv_feature_layers=str(list(config.conv_feature_layers)),
        mask_prob=0.8,
    )
    if not config.conv_pos_batch_norm:
        # fairseq 0.12.2 does not know it.
        del model["conv_pos_batch_norm"]
    task = {
        "_name": "hubert_pretraining",
        "data": "",
        "fine_tuning": False,
        "labels": ["km"],
        "label_rate": rate,
        "sample_rate": 16_000,
        "normalize": config.normalize,
    }
    # The settings of masked prediction are those of HuBERT Base; fairseq's defaults are others.
    criterion = {"_name": "hubert", "loss_weights": [10.0]}
    return {
        "cfg": {"model": model, "task": task, "criterion": criterion},
        **_entries_of_fairseq([symbols]),
    }


def _entries_of_fairseq(symbols: Sequence[list[str] | None]) -> dict[str, Any]:
    """Entries that fairseq requires besides settings and parameters, with a dictionary per list."""
    return {
        "args": None,
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "HubertCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 0,
            }
        ],
        "task_state": {"dictionaries": [listed and make_dictionary(listed) for listed in symbols]},
        "extra_state": {
            "metrics": None,
            "previous_training_time": 0.0,
            "train_iterator": {"epoch": 1},
        },
    }


def make_dictionary(symbols: list[str]) -> dict[str, Any]:
    """The plain values of fairseq's dictionary of these symbols, the special ones first."""
    return {
        CLASS_KEY: "Dictionary",
        "bos_word": "<s>",
        "unk_word": "<unk>",
        "pad_word": "<pad>",
        "eos_word": "</s>",
        "symbols": symbols,
        "count": [1] * len(symbols),
        "indices": {symbol: index for index, symbol in enumerate(symbols)},
        "bos_index": 0,
        "pad_index": 1,
        "eos_index": 2,
        "unk_index": 3,
        "nspecial": len(SPECIAL_SYMBOLS),
    }


def _settings(header: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """``cfg["model"]`` and ``cfg["task"]``; both are ``args`` in older files."""
    if header.get("cfg"):
        cfg = header["cfg"]
        model, task = (
            cfg.get(section) if isinstance(cfg, Mapping) else None for section in ("model", "task")
        )
        if not isinstance(model, Mapping) or not isinstance(task, Mapping):
            raise UserError(
                "The settings of the checkpoint lack 'model' or 'task'.",
                where=f"cfg of {where}",
                fix="Give a checkpoint written by fairseq.",
                code="checkpoint-format",
            )
    else:
        model = task = header["args"]
    return model, task


def _name(model: Mapping[str, Any]) -> Any:
    """The name of the architecture."""
    return model.get("_name") or model.get("arch")


def _pretrained_part(
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    where: str,
) -> tuple[Mapping[str, Any], Mapping[str, Any], dict[str, Tensor]]:
    """The encoder inside a fine-tuned model, with the settings of its pre-training (`w2v_args`).

    fairseq removes the projection and the dictionaries of pre-training; the label embeddings,
    which mean nothing without them, are left out, too.

    Returns:
        settings of model and task, parameters.

    Raises:
        UserError: the settings of the pre-training are missing.
    """
    settings = model.get("w2v_args")
    if not isinstance(settings, Mapping):
        raise UserError(
            "The fine-tuned checkpoint lacks the settings of its pre-training.",
            where=f"w2v_args of {where}",
            fix="Give the checkpoint that was fine-tuned.",
            code="checkpoint-incomplete",
        )
    inner_model, inner_task = _settings(
        {"cfg" if "model" in settings else "args": settings}, f"w2v_args of {where}"
    )
    prefix = FINE_TUNED[_name(model)]
    pretraining = tuple(f"{prefix}{name}" for name in OF_PRETRAINING)
    encoder = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix) and not name.startswith(pretraining)
    }
    outside = [name for name in state_dict if name.removeprefix(prefix) not in encoder]
    logger.info(
        "%s is fine-tuned (%s): its encoder is used. Left out: %s.",
        where,
        _name(model),
        _listed(outside),
    )
    if inner_model.get("feature_grad_mult") == 0:
        logger.info("Its fine-tuning froze the convolutions (feature_grad_mult 0), which is kept.")
    # The waveforms of fine-tuning are the last ones that the encoder was trained with.
    normalize = task.get("normalize", inner_task.get("normalize", False))
    return {**inner_model, "target_glu": False}, {**inner_task, "normalize": normalize}, encoder


def _listed(names: Sequence[str]) -> str:
    """Some names, and the number of the others."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _matrix_shape(tensor: Tensor, where: str) -> tuple[int, int]:
    if tensor.dim() != 2:
        raise UserError(
            f"label_embs_concat has {tensor.dim()} dimensions instead of 2.",
            where=where,
            fix="Download the checkpoint again.",
            code="checkpoint-format",
        )
    return tensor.shape[0], tensor.shape[1]
