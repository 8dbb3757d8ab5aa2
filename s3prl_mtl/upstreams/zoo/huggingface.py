"""Encoders of Hugging Face's transformers: `-u hf:PATH_OR_NAME` or `-u hf:NAME@REVISION`."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.errors import UserError, error_summary, require_packages
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams.base import HiddenStates, Upstream, check_waveforms
from s3prl_mtl.upstreams.hubert.transformers_format import HUGGING_FACE
from s3prl_mtl.upstreams.strict_loading import check_finite
from s3prl_mtl.upstreams.zoo.repository_code import Repository, may_execute_code
from s3prl_mtl.upstreams.zoo.state_names import strip_state_prefixes
from s3prl_mtl.upstreams.zoo.unpadded import encode_by_length, probe

logger = logging.getLogger(__name__)

UNUSED = ("masked_spec_embed",)
"""Parameters that only pre-training uses; some checkpoints lack them."""
OWN_STATES = ("hidden_states", "intermediate_hidden_states")
OWN_LAST = ("last_hidden_state", "encoder_out")
"""Names in the output of models with code of their own."""
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")


def import_transformers(where: str) -> Any:
    """Import transformers.

    Args:
        where: the flag that needs it, for the error.

    Raises:
        UserError: it is not installed.
    """
    require_packages(["transformers"], where, "transformers")
    ensure_torchaudio(required=False)  # transformers imports it if it is installed.
    return importlib.import_module("transformers")


class TransformersUpstream(Upstream):
    """An encoder of transformers.

    Only waveforms of equal length are encoded together, so that nothing is padded: features are
    those of each utterance alone. Masking inside the model and LayerDrop are off, as in s3prl's
    multi-task branch.

    ``hidden_states[0]`` is the input of the first layer, followed by the output of each layer. The
    last one is the model's ``last_hidden_state``: in pre-norm encoders it is taken after the final
    normalisation, which transformers does not apply in its ``hidden_states``.

    In checkpoints the parameters have the names that transformers gives them.

    Args:
        name: path or name from which it was loaded.
        model: the encoder.
        settings: the config of the model, as plain values.
        preprocessing: the settings of its feature extractor, as plain values; empty for a model
            with code of its own that takes waveforms and their lengths, as SPEAR does.
        revision: the commit that it was loaded from; None for a folder.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        settings: Mapping[str, Any],
        preprocessing: Mapping[str, Any],
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.revision = revision
        self.settings = dict(settings)
        self.preprocessing = dict(preprocessing)
        self.model = model.eval()
        kind = str(preprocessing.get("feature_extractor_type"))
        self._takes_waveforms = kind == "Wav2Vec2FeatureExtractor"
        if preprocessing and not self._takes_waveforms:
            self._extractor = _extractor_from(preprocessing, name)
        self._fixed_window = kind == "WhisperFeatureExtractor"
        strip_state_prefixes(self, ["model."])
        shape = probe(self._encode, name, f"-u {HUGGING_FACE}{name}")
        self.hidden_size = shape.hidden_size
        self.num_hidden_states = shape.num_hidden_states
        self.downsample_rate = shape.downsample_rate

    @property
    def checkpoint_info(self) -> dict[str, Any]:
        """Plain values from which :func:`rebuild_transformers` builds the encoder again."""
        return {
            "kind": "transformers",
            "name": self.name,
            "config": self.settings,
            "preprocessing": self.preprocessing,
            "revision": self.revision,
        }

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """Waveforms ``(samples_i,)`` -> packed hidden states; see :class:`Upstream`.

        Raises:
            UserError: an utterance is too short, or longer than the model's window (Whisper).
        """
        check_waveforms(wavs)
        return encode_by_length(wavs, self._encode, self.name)

    def _encode(self, wavs: list[Tensor]) -> list[Tensor]:
        if not self.preprocessing:
            return self._encode_by_own_code(wavs)
        inputs, frames = self._inputs(wavs)
        output = self.model(**inputs, output_hidden_states=True, return_dict=True)
        states = list(output.hidden_states)
        if output.last_hidden_state.shape == states[-1].shape:
            states[-1] = output.last_hidden_state
        return states if frames is None else [state[:, :frames] for state in states]

    def _encode_by_own_code(self, wavs: list[Tensor]) -> list[Tensor]:
        waves = torch.stack(wavs).to(next(self.model.parameters()))
        lengths = torch.full((len(wavs),), waves.shape[1], device=waves.device)
        output = self.model(waves, lengths)
        found = [output[name] for name in OWN_STATES if output.get(name) is not None]
        if not found:
            raise UserError(
                f"The output of {self.name} has no hidden states.",
                where=f"-u {HUGGING_FACE}{self.name}",
                fix="Choose another encoder; or write an upstream (docs/upstreams.md).",
                code="upstream-failed",
            )
        states = list(found[0])
        for name in OWN_LAST:
            if output.get(name) is not None and output[name].shape == states[-1].shape:
                states[-1] = output[name]
        return states

    def _inputs(self, wavs: list[Tensor]) -> tuple[dict[str, Tensor], int | None]:
        """The model's arguments for waveforms of one length; the frames to keep, None for all."""
        parameter = next(self.model.parameters())
        if self._takes_waveforms:
            waves = torch.stack(wavs).to(parameter)
            if self.preprocessing.get("do_normalize", True):
                mean = waves.mean(dim=1, keepdim=True)
                variance = waves.var(dim=1, keepdim=True, correction=0)
                waves = (waves - mean) / torch.sqrt(variance + 1e-7)
            return {"input_values": waves}, None
        frames = None
        if self._fixed_window:
            # Whisper encodes 30 s; the frames after the end of the utterance are dropped.
            window = int(self.preprocessing["chunk_length"]) * SAMPLE_RATE
            frames = self._frames_of_window(len(wavs[0]), window)
        extracted = self._extractor(
            [wav.detach().cpu().numpy() for wav in wavs],
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
        )
        inputs = {
            key: value.to(parameter) if value.is_floating_point() else value.to(parameter.device)
            for key, value in extracted.items()
        }
        return inputs, frames

    def _frames_of_window(self, samples: int, window: int) -> int:
        if samples > window:
            raise UserError(
                f"An utterance is {samples / SAMPLE_RATE:.1f} s long; {self.name} encodes at most "
                f"{window // SAMPLE_RATE} s.",
                where=f"-u {HUGGING_FACE}{self.name}",
                fix="Leave out longer utterances, or choose an encoder without a fixed window.",
                code="audio-too-long",
            )
        stride = window // int(self.settings["max_source_positions"])
        return -(-samples // stride)


def load_transformers(
    name: str,
    ckpt: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> TransformersUpstream:
    """Load an encoder of transformers.

    Args:
        name: a folder that `save_pretrained` wrote; or a name on huggingface.co, with `@REVISION`
            for another branch, tag or commit than the default branch.
        ckpt: must be None: the name locates the weights.
        cache_dir: where downloads are kept; None for transformers' own folder.
        trust_remote_code: execute modelling code of the repository; the revision must be the full
            hash of a commit.

    Raises:
        UserError: transformers is not installed, there is no such model, it lacks weights or a
            preprocessor config, a weight is not finite, its hidden states are not frames at a
            fixed rate, or it needs code that may not be executed.
    """
    where = f"-u {HUGGING_FACE}{name}"
    if ckpt is not None:
        raise UserError(
            "An encoder of Hugging Face takes no separate checkpoint.",
            where="-k",
            fix=f"Leave out -k, or give the folder: -u {HUGGING_FACE}FOLDER.",
            code="conflicting-options",
        )
    repository = Repository.parse(name)
    transformers = import_transformers(where)
    arguments = {} if repository.revision is None else {"revision": repository.revision}
    if cache_dir is not None:
        arguments["cache_dir"] = str(cache_dir)
    try:
        given, _ = transformers.PretrainedConfig.get_config_dict(repository.name, **arguments)
    except Exception as error:
        raise _cannot_load(name, error, where) from error
    known = _is_known(transformers, given)
    own = may_execute_code(repository, given, known, trust_remote_code, where)
    preprocessing = _read_preprocessing(transformers, repository.name, arguments, own, where)
    code = _permission(own, repository)
    try:
        config = transformers.AutoConfig.from_pretrained(repository.name, **arguments, **code)
        disable_masking(config)
        model, report = transformers.AutoModel.from_pretrained(
            repository.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **arguments,
            **code,
        )
    except Exception as error:
        # No network, an unknown name, damaged weights: any error may be raised here.
        raise _cannot_load(name, error, where) from error
    missing = [key for key in report["missing_keys"] if not key.endswith(UNUSED)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"The checkpoint of {name} lacks weights of the encoder: "
            f"{', '.join(sorted(missing)[:3])}{more}.",
            where=where,
            fix="Give a complete checkpoint.",
            code="checkpoint-incomplete",
        )
    encoder = _encoder_of(model)
    check_finite(encoder, "the encoder", repository.name)
    commit = getattr(config, "_commit_hash", None)
    if commit is not None:
        logger.info("%s is at commit %s.", repository, commit)
    settings = config.to_dict()
    return TransformersUpstream(repository.name, encoder, settings, preprocessing, commit)


def rebuild_transformers(
    info: Mapping[str, Any], trust_remote_code: bool = False
) -> TransformersUpstream:
    """An encoder from its ``checkpoint_info``; load its parameters afterwards.

    Modelling code of a repository is not in the checkpoint, but read again from there.

    Raises:
        UserError: transformers is not installed, or has no such model class; or the encoder needs
            code that may not be executed.
    """
    where = "the encoder in the checkpoint"
    transformers = import_transformers(where)
    settings = dict(info["config"])
    repository = Repository(info["name"], info.get("revision"))
    known = _is_known(transformers, settings)
    own = may_execute_code(repository, settings, known, trust_remote_code, where)
    try:
        if own:
            config = _own_class("AutoConfig", settings, repository).from_dict(settings)
        else:
            config = transformers.AutoConfig.for_model(**settings)
        disable_masking(config)
        with torch.random.fork_rng():
            if own:
                model = _own_class("AutoModel", settings, repository)(config)
            else:
                model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load(str(repository), error, where) from error
    encoder = _encoder_of(model.float())
    return TransformersUpstream(
        repository.name, encoder, settings, info["preprocessing"], repository.revision
    )


def _own_class(kind: str, settings: Mapping[str, Any], repository: Repository) -> Any:
    """The class of a repository's code for a class of transformers, such as `AutoModel`."""
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    found = dynamic.get_class_from_dynamic_module(
        settings["auto_map"][kind],
        repository.name,
        revision=repository.revision,
        code_revision=repository.revision,
    )
    found.register_for_auto_class(kind)  # `save_pretrained` then writes the code, too.
    return found


def _is_known(transformers: Any, settings: Mapping[str, Any]) -> bool:
    """Whether transformers itself has a class for the encoder with these settings."""
    # Not by its mappings, to which executed code adds: by its own lists of names.
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return settings.get("model_type") in auto.MODEL_MAPPING_NAMES


def _permission(own: bool, repository: Repository) -> dict[str, Any]:
    """Arguments of transformers: without an explicit False it would ask on the terminal."""
    if not own:
        return {"trust_remote_code": False}
    return {"trust_remote_code": True, "code_revision": repository.revision}


def _read_preprocessing(
    transformers: Any, source: str, arguments: Mapping[str, str], own_code: bool, where: str
) -> dict[str, Any]:
    """The settings of the feature extractor; never guessed.

    Empty for a model with code of its own and no such settings.
    """
    try:
        if own_code and not any(
            transformers.utils.cached_file(
                source, name, **arguments, _raise_exceptions_for_missing_entries=False
            )
            for name in PREPROCESSING
        ):
            return {}
        extractor = transformers.AutoFeatureExtractor.from_pretrained(
            source, **arguments, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(
            f"The preprocessing settings of {source} cannot be read ({error_summary(error)}).",
            where=where,
            fix="Check the name. A folder needs a preprocessor_config.json, such as "
            '{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": true, '
            '"sampling_rate": 16000}.',
            code="upstream-failed",
        ) from error
    settings: dict[str, Any] = json.loads(extractor.to_json_string())
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise UserError(
            f"{source} encodes waveforms at {rate} Hz; corpora are read at {SAMPLE_RATE} Hz.",
            where=where,
            fix=f"Choose an encoder for {SAMPLE_RATE} Hz.",
            code="audio-rate",
        )
    return settings


def _extractor_from(preprocessing: Mapping[str, Any], name: str) -> Any:
    transformers = import_transformers(f"-u {HUGGING_FACE}{name}")
    kind = str(preprocessing.get("feature_extractor_type"))
    known = getattr(transformers, kind, None)
    if known is None:
        raise UserError(
            f"transformers {transformers.__version__} has no {kind}, which {name} needs.",
            where=f"-u {HUGGING_FACE}{name}",
            fix="Install the version of transformers that the model was saved with.",
            code="upstream-failed",
        )
    settings = {key: value for key, value in preprocessing.items() if not key.endswith("_type")}
    return known(**settings)


def disable_masking(config: Any) -> None:
    """Turn off LayerDrop and masking inside a model, in its config."""
    for key in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    if hasattr(config, "mask_time_prob") or hasattr(config, "apply_spec_augment"):
        # data2vec's config lacks it, and its model defaults to masking.
        config.apply_spec_augment = False


def _encoder_of(model: Any) -> nn.Module:
    """The encoder of a model that also has a decoder (Whisper), else the model itself."""
    if getattr(model.config, "is_encoder_decoder", False):
        encoder: nn.Module = model.get_encoder()
        return encoder
    whole: nn.Module = model
    return whole


def _cannot_load(name: str, error: Exception, where: str) -> UserError:
    local = Path(os.path.expanduser(name)).is_dir()
    return UserError(
        f"{name} could not be loaded with transformers ({error_summary(error)}).",
        where=where,
        fix="Save it again with `save_pretrained`."
        if local
        else "Check the name and the network, or give the path of a folder.",
        code="upstream-failed",
    )
