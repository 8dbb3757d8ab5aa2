"""What a run's checkpoint holds that other programs can use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.compatibility import check_encoder, check_size
from s3prl_mtl.checkpoint.contents import encoder_weights, load_strictly
from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams import (
    Featurizer,
    Hubert,
    Upstream,
    hubert_from_state,
    load_upstream,
    rebuild_upstream,
)
from s3prl_mtl.upstreams.hubert.config import HubertConfig


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run, opened for export.

    Args:
        path: the file.
        checkpoint: what it holds, see `s3prl_mtl.checkpoint.files.Checkpoint`.
    """

    path: Path
    checkpoint: checkpoints.Checkpoint

    @classmethod
    def open(cls, run: Path) -> SavedRun:
        """The newest whole `states-*.ckpt` of a run's folder, or the file that is named.

        Nothing in the folder is changed, damaged files neither.

        Raises:
            UserError: there is no such file, it is damaged, or it is no checkpoint of a run; or it
                is one of the branch, which does not say how its encoder is built, and the file
                that it was trained from is not there.
        """
        checkpoint, path = checkpoints.load_newest(run, flag="RUN", set_aside=False)
        if "Origin" in checkpoint and checkpoint["UpstreamInfo"] is None:
            checkpoint |= _original_encoder(checkpoint, path)
        return cls(path, checkpoint)

    @property
    def step(self) -> int:
        """Steps that were taken."""
        return int(self.checkpoint["Step"])

    @property
    def kind(self) -> str | None:
        """`hubert`, `zoo`, `transformers`; None for an upstream that only its plugin can build."""
        details = self.checkpoint["UpstreamInfo"]
        return None if details is None else str(details["kind"])

    @property
    def upstream_name(self) -> str:
        """The name after `-u`."""
        return str(self.checkpoint["Config"]["upstream"]["name"])

    @property
    def feature_selection(self) -> str:
        """The word after `-s`."""
        return str(self.checkpoint["Config"]["upstream"]["feature_selection"])

    @property
    def heads(self) -> Mapping[str, Mapping[str, Any]]:
        """The state dict of each task's expert."""
        return {name: task["Downstream"] for name, task in self.checkpoint["Tasks"].items()}

    @property
    def layer_weights(self) -> Tensor | None:
        """``(layers,)`` before the softmax; None where features are the last hidden state."""
        weights: Tensor | None = self.checkpoint["Featurizer"].get("weights")
        return weights

    def hubert(self) -> Hubert:
        """The encoder, in evaluation mode. Its kind must be `hubert`.

        Raises:
            UserError: its parameters do not fit its settings.
        """
        weights = encoder_weights(self.checkpoint)
        details = self.checkpoint["UpstreamInfo"]
        settings = HubertConfig.from_dict(details["config"])
        layers, width = settings.encoder_layers, settings.encoder_embed_dim
        check_size(weights, layers, width, f"Upstream of {self.path}")
        return hubert_from_state(details, weights).eval()

    def upstream(self) -> Upstream:
        """The upstream of whatever kind, in evaluation mode. Its kind must not be None.

        Raises:
            UserError: it cannot be built here, or its parameters do not fit.
        """
        upstream = rebuild_upstream(self.checkpoint["UpstreamInfo"])
        where = f"Upstream of {self.path}"
        weights = encoder_weights(self.checkpoint)
        if weights:
            check_encoder(weights, upstream, where)
        load_strictly(upstream, weights, "the encoder", where)
        return upstream.eval()

    def featurizer(self, upstream: Hubert) -> Featurizer:
        """The weighted sum over the layers.

        Raises:
            UserError: the checkpoint's does not fit the upstream.
        """
        featurizer = Featurizer(upstream, self.feature_selection)
        where = f"Featurizer of {self.path}"
        load_strictly(featurizer, self.checkpoint["Featurizer"], "the featurizer", where)
        return featurizer.eval()


def _original_encoder(checkpoint: checkpoints.Checkpoint, path: Path) -> dict[str, Any]:
    """What the encoder of a branch's checkpoint is, from what it was trained from."""
    settings = checkpoint["Config"]["upstream"]
    try:
        upstream = load_upstream(settings["name"], settings["ckpt"])
    except UserError as error:
        raise UserError(
            f"The checkpoint is of {checkpoint['Origin']} and does not say how its encoder is "
            f"built; what it was trained from cannot be had: {error}",
            where=str(path),
            fix="Put that file there again; or start a run from the checkpoint (-u, -k, -i) and "
            "export that.",
        ) from error
    # Where the encoder was frozen the branch does not save it: it is the original.
    return {
        "UpstreamInfo": upstream.checkpoint_info,
        "Upstream": checkpoint["Upstream"] or upstream.state_dict(),
    }
