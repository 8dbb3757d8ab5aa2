"""A checkpoint opened for export: encoder, featurizer and heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.compatibility import check_size
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.checkpoint.restore import encoder_weights, load_encoder
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
from s3prl_mtl.upstreams.strict_loading import load_strictly


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run, opened for export.

    Args:
        path: the file.
        checkpoint: its contents.
        trust_remote_code: execute modelling code of the repository of the encoder.
    """

    path: Path
    checkpoint: RunCheckpoint
    trust_remote_code: bool = False

    @classmethod
    def open(cls, run: Path, trust_remote_code: bool = False) -> SavedRun:
        """Open the newest undamaged `states-*.ckpt` of a folder, or a file.

        Files in the folder are not changed.

        Raises:
            UserError: there is no such file, it is damaged, or not a checkpoint of a run; or it
                is of the branch, without a description of its encoder, and the file that it was
                trained from is missing.
        """
        checkpoint, path = checkpoints.load_newest(run, flag="RUN", set_aside=False)
        if checkpoint.origin is not None and checkpoint.upstream_info is None:
            checkpoint = _with_encoder(checkpoint, path)
        return cls(path, checkpoint, trust_remote_code)

    @property
    def step(self) -> int:
        """Training steps taken."""
        return self.checkpoint.step

    @property
    def kind(self) -> str | None:
        """`hubert`, `zoo` or `transformers`; None if only its plugin can build the upstream."""
        details = self.checkpoint.upstream_info
        return None if details is None else str(details["kind"])

    @property
    def has_own_code(self) -> bool:
        """Whether the encoder has modelling code of its own, of a repository of Hugging Face."""
        details = self.checkpoint.upstream_info or {}
        return self.kind == "transformers" and "auto_map" in details["config"]

    @property
    def upstream_name(self) -> str:
        """The name after `-u`."""
        return self.checkpoint.upstream_config.name

    @property
    def feature_selection(self) -> str:
        """The word after `-s`."""
        return self.checkpoint.upstream_config.feature_selection

    @property
    def heads(self) -> Mapping[str, Mapping[str, Any]]:
        """The state dict of each task's expert."""
        return {name: task.head for name, task in self.checkpoint.tasks.items()}

    @property
    def layer_weights(self) -> Tensor | None:
        """``(layers,)`` before the softmax; None if features are the last hidden state."""
        weights: Tensor | None = self.checkpoint.featurizer.get("weights")
        return weights

    @property
    def _info(self) -> dict[str, Any]:
        info = self.checkpoint.upstream_info
        assert info is not None, "callers check `kind`"
        return info

    def hubert(self) -> Hubert:
        """The encoder of kind `hubert`, in evaluation mode.

        Raises:
            UserError: its parameters do not fit its settings.
        """
        weights = encoder_weights(self.checkpoint.upstream)
        settings = HubertConfig.from_dict(self._info["config"])
        layers, width = settings.encoder_layers, settings.encoder_embed_dim
        check_size(weights, layers, width, f"Upstream of {self.path}")
        return hubert_from_state(self._info, weights).eval()

    def upstream(self) -> Upstream:
        """The upstream of a kind that is not None, in evaluation mode.

        Raises:
            UserError: it cannot be built here, or its parameters do not fit.
        """
        upstream = rebuild_upstream(self._info, self.trust_remote_code)
        load_encoder(self.checkpoint.upstream, upstream, f"Upstream of {self.path}")
        return upstream.eval()

    def featurizer(self, upstream: Hubert) -> Featurizer:
        """The weighted sum over the layers.

        Raises:
            UserError: the weights do not fit the upstream.
        """
        featurizer = Featurizer(upstream, self.feature_selection)
        where = f"Featurizer of {self.path}"
        load_strictly(featurizer, self.checkpoint.featurizer, "the featurizer", where)
        return featurizer.eval()


def _with_encoder(checkpoint: RunCheckpoint, path: Path) -> RunCheckpoint:
    """A checkpoint of the branch with the description of the encoder that it was trained from."""
    settings = checkpoint.upstream_config
    try:
        upstream = load_upstream(settings.name, settings.ckpt and str(settings.ckpt))
    except UserError as error:
        raise UserError(
            f"The checkpoint is from {checkpoint.origin} and has no description of its encoder; "
            f"the file that it was trained from cannot be loaded: {error}",
            where=str(path),
            fix="Restore that file; or start a run from the checkpoint (-u, -k, -i) and export "
            "that.",
            code="checkpoint-incomplete",
        ) from error
    return replace(
        checkpoint,
        upstream_info=upstream.checkpoint_info,
        # The branch does not save a frozen encoder, which is the original.
        upstream=checkpoint.upstream or upstream.state_dict(),
    )
