"""Interpolate tuned encoders with the pre-trained one that they were tuned from."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.restore import encoder_weights
from s3prl_mtl.errors import UserError
from s3prl_mtl.export.command import write_errors
from s3prl_mtl.export.pretraining_head import PARTS, with_head_of_fairseq
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.fileio.paths import require_absent
from s3prl_mtl.upstreams import Hubert, Upstream, load_upstream, write_fairseq_checkpoint
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from s3prl_mtl.upstreams.hubert.transformers_format import HUGGING_FACE, folder_of
from s3prl_mtl.upstreams.strict_loading import mismatch

logger = logging.getLogger(__name__)

SUFFIXES = (".ckpt", ".pt")
"""Suffixes of a checkpoint of a run, and of a fairseq file."""


@dataclass(frozen=True)
class Alpha:
    """The weight of a tuned encoder: of the first and of the last layer, linear in between.

    Args:
        text: as given.
    """

    first: float
    last: float
    text: str = field(compare=False)

    def of_layer(self, layer: int, layers: int) -> float:
        """The weight of layer 1 to `layers`; the front end, 0, has that of the first."""
        place = (max(layer, 1) - 1) / max(layers - 1, 1)
        return (1 - place) * self.first + place * self.last


def merge(
    base: str, tuned: Sequence[str], alpha: str, out: str | os.PathLike[str], by_layer: bool = False
) -> list[Path]:
    """Write ``base + sum_i alpha_i * (tuned_i - base)`` (task arithmetic, Ilharco et al., 2023).

    With one tuned encoder this is the interpolation of Speech-FT (Lin et al., 2025, arXiv
    2502.12672). `alpha` 0 and 1 give `base` and `tuned` exactly.

    Args:
        base: name of an upstream, a fairseq file, a folder of transformers, or a run: the encoder
            before tuning.
        tuned: runs (folder or `.ckpt` file), fairseq files, or folders of transformers' HuBERT.
        alpha: one number; or several, separated by commas: for one tuned encoder an output for
            each, for several tuned encoders the weight of each. With `by_layer` each is a pair
            `FIRST:LAST`.
        out: `.ckpt`: the checkpoint of the first run with the merged encoder, for `predict` and
            `evaluate`; heads and layer weights stay as they are. `.pt`: a fairseq file, for `-k`.
            With an output for each alpha, the files are `<stem>-<alpha><suffix>`.
        by_layer: one weight for each Transformer layer, see `Alpha`.

    Returns:
        the files.

    Raises:
        UserError: an encoder is missing or of another size, alpha is not of this form, `out`
            exists, or its suffix does not fit.
    """
    alphas = _parse(alpha, by_layer)
    if len(tuned) > 1 and len(alphas) not in (1, len(tuned)):
        raise UserError(
            f"{len(tuned)} tuned encoders have {len(alphas)} weights.",
            where=f"--alpha {alpha}",
            fix=f"Give one for all, or {len(tuned)}.",
            code="invalid-value",
        )
    outputs = _outputs(Path(os.path.abspath(out)), alphas if len(tuned) == 1 else [])
    first = _Encoder.open_tuned(tuned[0])
    if outputs[0].suffix == ".ckpt" and first.run is None:
        raise UserError(
            f"{tuned[0]} is not a run: a .ckpt file contains the heads of a run.",
            where=f"-o {out}",
            fix="Write a fairseq file: name it .pt.",
            code="conflicting-options",
        )
    encoders = [first, *(_Encoder.open_tuned(name) for name in tuned[1:])]
    origin, *encoders = _with_equal_heads([_Encoder.open_base(base, first), *encoders])
    first = encoders[0]
    for encoder in encoders:
        _check_same_parameters(origin, encoder)
    for number, path in enumerate(outputs):
        chosen = [alphas[number]] if len(tuned) == 1 else alphas * (len(tuned) // len(alphas))
        weights = [_weights(one, first, by_layer) for one in chosen]
        merged = interpolate(origin.state, [encoder.state for encoder in encoders], weights)
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, first, merged)
        logger.info("Wrote %s with alpha %s.", path, ",".join(one.text for one in chosen))
    return outputs


def interpolate(
    base: Mapping[str, Tensor],
    tuned: Sequence[Mapping[str, Tensor]],
    weights: Sequence[Mapping[str, float]],
) -> dict[str, Tensor]:
    """The merged parameters, computed in float64.

    Args:
        base: parameters by name.
        tuned: the same for each tuned encoder.
        weights: for each tuned encoder the weight of each parameter. Tensors without a floating
            point are those of the first tuned encoder.
    """
    merged = {}
    for name, start in base.items():
        if not start.is_floating_point():
            merged[name] = tuned[0][name]
            continue
        # Not as differences, which round: this way 0 and 1 give one of the summands exactly.
        total = start.double() * (1 - sum(weight[name] for weight in weights))
        for state, weight in zip(tuned, weights, strict=True):
            total += weight[name] * state[name].double()
        merged[name] = total.to(start.dtype)
    return merged


@dataclass(frozen=True)
class _Encoder:
    """An encoder to merge.

    Args:
        where: the flag that names it, for errors.
        state: its parameters without the prefix of run checkpoints.
        run: the run that holds it, or None.
        loaded: it as a module; None if it is of a run.
    """

    where: str
    state: Mapping[str, Tensor]
    run: SavedRun | None = None
    loaded: Upstream | None = None

    @classmethod
    def open_base(cls, name: str, tuned: _Encoder) -> _Encoder:
        path = Path(os.path.expanduser(name))
        folder = folder_of(path)
        if folder is not None and tuned.run is not None and tuned.run.kind == "transformers":
            # The run has transformers' names of the parameters.
            name = f"{HUGGING_FACE}{folder}"
        elif folder is not None:
            found = cls._open(path, f"--base {name}")
            # Such a folder has no head of pre-training: that of the tuned encoder stays.
            head = {key: value for key, value in tuned.state.items() if key.startswith(PARTS)}
            return replace(found, state={**found.state, **head})
        elif path.is_file() or checkpoints.states_files(path):
            return cls._open(path, f"--base {name}")
        try:
            upstream = load_upstream(name)
        except UserError as cause:
            if cause.code != "unknown-name":
                raise
            # Its place is -u, which is not a flag of this command.
            raise UserError(
                cause.what, where=f"--base {name}", fix=cause.fix, code=cause.code
            ) from cause
        return cls(f"--base {name}", encoder_weights(upstream.s3prl_state_dict()), loaded=upstream)

    @classmethod
    def open_tuned(cls, name: str) -> _Encoder:
        return cls._open(Path(os.path.expanduser(name)), f"--tuned {name}")

    @classmethod
    def _open(cls, path: Path, where: str) -> _Encoder:
        if folder_of(path) or (path.is_file() and "model" in checkpoints.read_tensors(path)):
            loaded = load_hubert(path)
            return cls(where, loaded.state_dict(), loaded=loaded)
        run = SavedRun.open(path)
        return cls(where, encoder_weights(run.checkpoint.upstream), run=run)

    def module(self) -> Upstream | None:
        """The upstream with its own parameters; None where only its plugin can build it."""
        if self.run is None:
            return self.loaded
        return self.run.upstream() if self.run.kind is not None else None

    def size(self) -> str:
        """Its layers and their width, for errors; empty where it is not known."""
        module = self.module()
        if module is None:
            return ""
        return f"{module.num_hidden_states - 1} layers of width {module.hidden_size}"


def _parse(text: str, by_layer: bool) -> list[Alpha]:
    """Parse `--alpha`.

    Raises:
        UserError: it is not a list of numbers, or with `by_layer` of pairs.
    """
    alphas = []
    for word in map(str.strip, text.split(",")):
        try:
            numbers = [float(number) for number in word.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) != 1 + by_layer or not all(map(math.isfinite, numbers)):
            raise UserError(
                f"{word!r} is not a {'pair of numbers' if by_layer else 'number'}.",
                where=f"--alpha {text}",
                fix="With --by_layer: FIRST:LAST, such as 0.1:0.5."
                if by_layer
                else "For example 0.25, or 0.25,0.5. FIRST:LAST needs --by_layer.",
                code="invalid-value",
            )
        alphas.append(Alpha(numbers[0], numbers[-1], word))
    return alphas


def _outputs(out: Path, alphas: Sequence[Alpha]) -> list[Path]:
    """The files to write: one for each alpha, if there are several.

    Raises:
        UserError: one exists, the suffix is unknown, or two alphas have one file.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(
            f"{out.name} ends neither in .ckpt nor in .pt.",
            where=f"-o {out}",
            fix="Name it .ckpt for the checkpoint of a run, .pt for a fairseq file.",
            code="invalid-value",
        )
    outputs = [out]
    if len(set(alphas)) < len(alphas):
        raise UserError(
            "An alpha is given more than once.",
            where=f"--alpha {','.join(alpha.text for alpha in alphas)}",
            fix="Give each once: each has a file.",
            code="conflicting-options",
        )
    if len(alphas) > 1:
        words = [alpha.text.replace(":", "-") for alpha in alphas]
        outputs = [out.with_name(f"{out.stem}-{word}{out.suffix}") for word in words]
    for path in outputs:
        require_absent(path, f"-o {out}")
    return outputs


def _with_equal_heads(encoders: Sequence[_Encoder]) -> list[_Encoder]:
    """Encoders that all have a head of pre-training, or none.

    Folders of transformers and fine-tuned files have none. The result has one if the first tuned
    encoder does; others without one take that of the base.

    Args:
        encoders: the base and the tuned ones.
    """
    heads = [{key: v for key, v in one.state.items() if key.startswith(PARTS)} for one in encoders]
    origin, first, *_ = heads
    if all(heads) or not any(heads):
        return list(encoders)
    equal = []
    for one, own in zip(encoders, heads, strict=True):
        bare = {key: value for key, value in one.state.items() if key not in own}
        equal.append(replace(one, state={**bare, **(own or origin)} if first else bare))
    return equal


def _check_same_parameters(base: _Encoder, tuned: _Encoder) -> None:
    reason = mismatch(base.state, tuned.state)
    sizes = [one.size() for one in (base, tuned)]
    if reason and all(sizes) and sizes[0] != sizes[1]:
        raise UserError(
            f"The encoders have different sizes: {base.where} has {sizes[0]}, {tuned.where} has "
            f"{sizes[1]}.",
            where=f"{base.where}, {tuned.where}",
            fix="Give the encoder that the run was tuned from.",
            code="checkpoint-mismatch",
        )
    if reason:
        raise UserError(
            f"The parameters of the encoders do not match. Those of {tuned.where}: {reason}.",
            where=f"{base.where}, {tuned.where}",
            fix="Give the encoder that the run was tuned from.",
            code="checkpoint-mismatch",
        )


def _weights(alpha: Alpha, encoder: _Encoder, by_layer: bool) -> dict[str, float]:
    """The weight of each parameter.

    Raises:
        UserError: weights by layer, and the layers of the encoder's parameters are unknown.
    """
    if not by_layer:
        return dict.fromkeys(encoder.state, alpha.first)
    module = encoder.module()
    layers = module.parameter_layers() if module is not None else None
    if layers is None:
        raise UserError(
            "The layers of the encoder's parameters are unknown.",
            where=f"--by_layer, {encoder.where}",
            fix="Leave out --by_layer: one alpha for all layers.",
            code="not-supported",
        )
    last = max(layers.values())
    return {name: alpha.of_layer(layers.get(name, last), last) for name in encoder.state}


def _write(path: Path, encoder: _Encoder, merged: Mapping[str, Tensor]) -> None:
    """Write the merged parameters in place of those of the first tuned encoder."""
    if path.suffix == ".ckpt":
        assert encoder.run is not None
        checkpoint = encoder.run.checkpoint
        bare = encoder_weights(checkpoint.upstream)
        named = {full: merged[name] for full, name in zip(checkpoint.upstream, bare, strict=True)}
        checkpoints.save(replace(checkpoint, upstream=named, training=None), path)
        return
    model = encoder.module()
    if not isinstance(model, Hubert):
        raise UserError(
            "Only HuBERT has a fairseq file.",
            where=f"-o {path}",
            fix="Write the checkpoint of a run: name it .ckpt.",
            code="not-supported",
        )
    with torch.no_grad():
        model.load_state_dict(dict(merged))
    write_fairseq_checkpoint(path, with_head_of_fairseq(model))
