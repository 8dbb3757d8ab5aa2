"""Convert the masked-prediction head of a run to the parameters of fairseq's HuBERT."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from s3prl_mtl.checkpoint.contents import TaskCheckpoint
from s3prl_mtl.errors import UserError
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import Hubert
from s3prl_mtl.upstreams.hubert.config import SPECIAL_SYMBOLS
from s3prl_mtl.upstreams.hubert.encoder import build_hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import make_dictionary, make_header

logger = logging.getLogger(__name__)

PARTS = ("final_proj.", "label_embs_concat", "target_glu.")
"""Beginnings of the names of the parameters."""

PLACES = {
    "task": {"labels", "label_rate"},
    "criterion": {"pred_masked_weight", "pred_nomask_weight", "loss_weights"},
    "model": {
        "label_rate",
        "final_dim",
        "untie_final_proj",
        "target_glu",
        "logit_temp",
        "skip_masked",
        "skip_nomask",
        *(f"mask_{key}" for key in ("prob", "length", "selection", "other", "min_space")),
        *(f"mask_channel_{key}" for key in ("prob", "length", "selection", "other", "min_space")),
        "no_mask_overlap",
        "no_mask_channel_overlap",
    },
}
"""Settings of each part of fairseq's config."""

CRITERION = {
    "_name": "hubert",
    "pred_masked_weight": 1.0,
    "pred_nomask_weight": 0.0,
    "loss_weights": None,
    "log_keys": [],
}
"""fairseq's defaults, which files without a criterion of their own do not have."""


def with_pretraining_head(model: Hubert, run: SavedRun) -> Hubert:
    """The encoder with the head, dictionaries and settings of the run's masked prediction.

    A task has such a head if its parameters have fairseq's names and its label space has
    `dictionaries` and `label_rate`, as `ssl` has. The settings are those of fairseq's that the
    blocks `modelrc` and `lossrc` of the task set.

    Args:
        model: the encoder of the run.
        run: the run.

    Returns:
        `model` itself if no task of the run has such a head.

    Raises:
        UserError: several tasks have one.
    """
    found = {name: task for name, task in run.checkpoint.tasks.items() if _predicts_masked(task)}
    if not found:
        return model
    if len(found) > 1:
        raise UserError(
            f"Several tasks of the run have a head of pre-training: {', '.join(found)}.",
            where=str(run.path),
            fix="A file of fairseq has one: train with one of them.",
            code="ambiguous-name",
        )
    ((name, task),) = found.items()
    head = {key: value for key, value in task.head.items() if key.startswith(PARTS)}
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(PARTS)}
    rows, width = head["label_embs_concat"].shape
    config = replace(
        model.config,
        final_proj_dim=len(head["final_proj.weight"]),
        label_embeddings=(rows, width),
        target_glu="target_glu.0.weight" in head,
    )
    labels = task.labels or {}
    settings = {
        "label_rate": labels["label_rate"],
        "labels": list(labels["dictionaries"]),
        "final_dim": width,
        "untie_final_proj": config.final_proj_dim > width,
        "target_glu": config.target_glu,
    }
    stated = run.checkpoint.config[name]["downstream_expert"]
    for block in ("modelrc", "lossrc"):
        own = stated.get(block) or {}
        settings |= {key: value for key, value in own.items() if value is not None}
    header = model.fairseq_header or make_header(model.config)
    header = _updated(header, settings, list(labels["dictionaries"].values()))
    return build_hubert(config, {**state, **head}, header, where=str(run.path)).eval()


def with_head_of_fairseq(model: Hubert) -> Hubert:
    """The encoder with what fairseq and s3prl load strictly: at least `final_proj`.

    Encoders of transformers' folders and of fine-tuned files have no head. They get a new
    `final_proj`, the same each time, and no label embeddings: the dictionary is None, by which
    fairseq knows a model for fine-tuning.

    Args:
        model: the encoder.

    Returns:
        `model` itself if it has a head.
    """
    if model.config.final_proj_dim:
        return model
    width = model.config.encoder_embed_dim
    config = replace(model.config, final_proj_dim=width, label_embeddings=(0, 0), target_glu=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection = nn.Linear(width, width)
    head = {f"final_proj.{name}": value for name, value in projection.state_dict().items()}
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(PARTS)}
    logger.warning(
        "The encoder has no head of pre-training: `final_proj` of the file is new, and it has no "
        "label embeddings. fairseq fine-tunes it and extracts features. To go on with its "
        "pre-training, train a run with `ssl` first."
    )
    return build_hubert(config, {**state, **head}, None, where="the encoder").eval()


def _predicts_masked(task: TaskCheckpoint) -> bool:
    has_labels = task.labels is not None and {"dictionaries", "label_rate"} <= task.labels.keys()
    return has_labels and {"final_proj.weight", "label_embs_concat"} <= task.head.keys()


def _updated(
    header: Mapping[str, Any], settings: Mapping[str, Any], dictionaries: list[list[str]]
) -> dict[str, Any]:
    """A header with other settings and dictionaries."""
    changed = copy.deepcopy(dict(header))
    if changed.get("cfg"):
        # Names that both have, such as `label_rate`, have one meaning in fairseq.
        for part, names in PLACES.items():
            own = {key: value for key, value in settings.items() if key in names}
            known = CRITERION if part == "criterion" else {}
            changed["cfg"][part] = {**known, **(changed["cfg"].get(part) or {}), **own}
    else:
        changed["args"].update(settings)
    made = [make_dictionary([*SPECIAL_SYMBOLS, *symbols]) for symbols in dictionaries]
    changed["task_state"] = {**changed.get("task_state", {}), "dictionaries": made}
    return changed
