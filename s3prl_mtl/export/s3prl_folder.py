"""`--format s3prl`: a folder for s3prl 0.4.18, and for `--init_ckpt` here and in the branch.

    upstream.pt                      the encoder, for `-u hubert_local -k`
    <task>/<upstream>_<task>.ckpt    a head and its weighted sum of layers, for `-i`

For an upstream of s3prl's own zoo there is no `upstream.pt`: its weights are in each `.ckpt`, from
which s3prl's `-i` loads them into the upstream of `-u`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.export.formats import Options
from s3prl_mtl.export.pretraining_head import with_head_of_fairseq, with_pretraining_head
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.fileio.safe_torch import CLASS_KEY
from s3prl_mtl.upstreams import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import make_header
from s3prl_mtl.upstreams.zoo.s3prl_upstream import S3prlUpstream

NO_SHARE = -1e4
"""A layer weight that is exactly 0 after the softmax, in float32 too."""


def write(run: SavedRun, out: Path, options: Options) -> None:
    """Write the encoder and the heads for s3prl.

    Args:
        run: its upstream is HuBERT or of s3prl's zoo.
        out: the folder, created here.
        options: not used.

    Raises:
        UserError: two heads have one file name.
    """
    out.mkdir()
    weights: dict[str, Any] = {}
    if run.kind == "hubert":
        model = with_head_of_fairseq(with_pretraining_head(run.hubert(), run))
        save(converted(model), out / "upstream.pt")
    else:
        upstream = run.upstream()
        if not isinstance(upstream, S3prlUpstream):
            raise TypeError(f"{type(upstream).__name__} is not of s3prl's zoo")
        weights["Upstream"] = dict(upstream.expert.state_dict())
    weights["Featurizer"] = featurizer(run)
    if not run.heads and run.kind != "hubert":
        save(weights, out / f"{file_name(run.upstream_name)}.ckpt")
    for task, head in run.heads.items():
        path = out / file_name(task) / f"{file_name(run.upstream_name)}_{file_name(task)}.ckpt"
        if path.exists():
            raise UserError(
                "Two tasks of the run have the same file name.",
                where=f"{path.relative_to(out)} for {run.path}",
                code="duplicate-name",
            )
        path.parent.mkdir()
        # Without Step and Epoch: s3prl would continue from there.
        save({**weights, "Downstream": dict(head)}, path)


def converted(model: Hubert) -> dict[str, Any]:
    """A checkpoint in s3prl's converted format, which does not need fairseq.

    Returns:
        `task_cfg`, `model_cfg`, `model_weight`, `dictionaries_symbols`: tensors and plain values.
    """
    made = make_header(model.config)
    header = model.fairseq_header or made
    stated = header.get("cfg") or {}
    # Older files have all settings in one namespace.
    flat = {key: value for key, value in (header.get("args") or {}).items() if key != CLASS_KEY}
    model_settings = {**made["cfg"]["model"], **stated.get("model", flat)}
    task_settings = {**made["cfg"]["task"], **stated.get("task", flat)}
    dictionaries = header["task_state"]["dictionaries"]
    return {
        "task_cfg": task_settings,
        "model_cfg": model_settings,
        "model_weight": dict(model.state_dict()),
        "dictionaries_symbols": [listed and list(listed["symbols"]) for listed in dictionaries],
    }


def featurizer(run: SavedRun) -> dict[str, Tensor]:
    """The state dict of s3prl's `Featurizer` for `hidden_states` or `last_hidden_state`.

    s3prl no longer has `layer_results`; it is the sum over `hidden_states` without index 0.
    """
    weights = run.layer_weights
    if weights is None:
        return {}
    if run.feature_selection == "layer_results":
        weights = torch.cat([weights.new_full((1,), NO_SHARE), weights])
    return {"weights": weights}


def file_name(name: str) -> str:
    """A file name for a task or an upstream, such as `package:name` or a path."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)


def save(content: Mapping[str, Any], path: Path) -> None:
    """`torch.save` without the file name in the file."""
    with path.open("wb") as file:
        torch.save(dict(content), file)
