"""Small random checkpoints in the formats that the modules of s3prl's zoo read."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams.zoo.s3prl_hub import import_hub

CONVOLUTIONS = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
WIDTH = 16
SIZE: dict[str, Any] = {
    "conv_feature_layers": CONVOLUTIONS,
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "encoder_layerdrop": 0.5,
    "dropout": 0.1,
}
FBANK = {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "frame_shift": 10}
SPECTROGRAM = {
    "kaldi": {
        "feat_type": "fbank",
        "fbank": {
            "frame_length": 25.0,
            "frame_shift": 10.0,
            "num_mel_bins": 20,
            "use_log_fbank": True,
        },
    },
    "delta": {"order": 0, "win_length": 5},
    "cmvn": {"use_cmvn": True},
}


def of_s3prl(module: str) -> Any:
    ensure_torchaudio()
    return importlib.import_module(f"s3prl.upstream.{module}")


def apc() -> dict[str, Any]:
    paras = {"hidden_size": 24, "num_layers": 3, "dropout": 0.1, "residual": True}
    model = of_s3prl("apc.apc").APC(80, **paras)
    return _in_config(model, paras)


def npc() -> dict[str, Any]:
    paras = {
        "hidden_size": 24,
        "n_blocks": 2,
        "dropout": 0.1,
        "residual": True,
        "kernel_size": 15,
        "mask_size": 5,
    }
    return _in_config(of_s3prl("npc.npc").NPC(80, **paras), paras)


def _in_config(model: Any, paras: dict[str, Any]) -> dict[str, Any]:
    config = {"data": {"audio": dict(FBANK)}, "model": {"paras": paras}}
    return {"config": config, "model": model.state_dict()}


def wav2vec2() -> dict[str, Any]:
    module = of_s3prl("wav2vec2.wav2vec2_model")
    config = module.Wav2Vec2Config(**SIZE, final_dim=16)
    return _converted(module.Wav2Vec2Model(config), config, normalize=True)


def hubert() -> dict[str, Any]:
    module = of_s3prl("hubert.hubert_model")
    config = module.HubertConfig(label_rate=50, **SIZE, final_dim=16)
    task = module.HubertPretrainingConfig(label_rate=50)
    symbols = [[str(number) for number in range(8)]]
    model = module.HubertModel(config, task, symbols)
    return {**_converted(model, config, normalize=False), "dictionaries_symbols": symbols}


def data2vec() -> dict[str, Any]:
    module = of_s3prl("data2vec.data2vec_model")
    config = module.Data2VecAudioConfig(**{**SIZE, "conv_pos": 15}, final_dim=16)
    model = module.Data2VecAudioModel(config)
    model.remove_pretraining_modules()
    checkpoint = _converted(model, config, normalize=True)
    checkpoint["model_weight"]["_ema"] = torch.zeros(1)
    return checkpoint


def _converted(model: Any, config: Any, normalize: bool) -> dict[str, Any]:
    plain = {key: value for key, value in asdict(config).items() if _is_plain(value)}
    return {
        "task_cfg": {"normalize": normalize, "sample_rate": 16_000},
        "model_cfg": plain,
        "model_weight": dict(model.state_dict()),
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | list | tuple | type(None))


def wavlm() -> dict[str, Any]:
    module = of_s3prl("wavlm.WavLM")
    settings = {**SIZE, "relative_position_embedding": True, "gru_rel_pos": True}
    return {
        "cfg": settings,
        "model": module.WavLM(module.WavLMConfig(settings)).state_dict(),
    }


def distiller() -> dict[str, Any]:
    module = of_s3prl("distiller.model")
    settings = {
        **{key: value for key, value in SIZE.items() if key != "conv_feature_layers"},
        "extractor_conv_feature_layers": CONVOLUTIONS,
        "final_dim": 24,
        "n_tasks": 2,
        "pred_layer_id": [1, 2],
        "task_emb_type": "expand-last",
    }
    model = module.DistillerModel(module.DistillerConfig(settings))
    return {"Config": {"distiller": settings}, "Distiller": model.state_dict()}


def mockingjay() -> dict[str, Any]:
    return _transformer("mockingjay", {})


def audio_albert() -> dict[str, Any]:
    return _transformer("mockingjay", {"share_layer": True})


def _transformer(module: str, more: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "share_layer": False,
        "pre_layer_norm": False,
        **more,
    }
    config = {
        "transformer": settings,
        "audio": SPECTROGRAM,
        "task": {"sequence_length": 1500},
    }
    classes = of_s3prl(f"{module}.model")
    model = classes.TransformerModel(classes.TransformerConfig(settings), 20)
    return {"Config": config, "Transformer": model.state_dict()}


def cpc() -> dict[str, Any]:
    arguments = of_s3prl("cpc.cpc_default_config").get_default_cpc_config()
    arguments.hiddenEncoder = arguments.hiddenGar = 24
    loader = of_s3prl("cpc.feature_loader")
    model = of_s3prl("cpc.model").CPCModel(loader.getEncoder(arguments), loader.getAR(arguments))
    return {"config": vars(arguments), "weights": model.state_dict()}


def wav2vec(**more: Any) -> dict[str, Any]:
    module = of_s3prl("wav2vec.wav2vec_model")
    config = module.Wav2VecConfig(
        **more,
        infonce=True,
        conv_feature_layers="[(24,10,5),(24,8,4),(24,4,2),(24,4,2),(24,4,2)]",
        conv_aggregator_layers="[(24,2,1),(24,3,1)]",
    )
    settings = {key: value for key, value in asdict(config).items() if _is_plain(value)}
    model = module.Wav2VecModel(config)
    return {
        "task_cfg": {"normalize": False},
        "model_cfg": settings,
        "model_weight": dict(model.state_dict()),
    }


def vq_wav2vec() -> dict[str, Any]:
    return wav2vec(vq_type="kmeans", vq_vars=8)


def lighthubert() -> dict[str, Any]:
    """The smaller of two sizes that are fixed in s3prl's code, 20 M parameters."""
    module = of_s3prl("lighthubert.lighthubert")
    settings = {
        "_name": "hubert_pruner",
        "pruner_supernet": "small.yaml",
        "conv_feature_layers": CONVOLUTIONS,
        "extractor_mode": "default",
        "encoder_embed_dim": 384,
        "encoder_ffn_embed_dim": 1536,
        "encoder_attention_heads": 6,
        "conv_pos": 16,
    }
    model = module.LightHuBERT(module.LightHuBERTConfig(settings))
    return {"cfg": {"model": settings}, "model": model.state_dict()}


def mae_ast() -> dict[str, Any]:
    module = of_s3prl("mae_ast.mae_ast")
    config = module.MAE_AST_Config(
        ast_kernel_size_chan=128,
        ast_kernel_stride_chan=128,
        ast_kernel_size_time=2,
        ast_kernel_stride_time=2,
        encoder_layers=2,
        encoder_embed_dim=24,
        encoder_ffn_embed_dim=32,
        encoder_attention_heads=4,
        decoder_embed_dim=24,
        decoder_layers=1,
        enc_sine_pos=True,
        dec_sine_pos=True,
        max_token_length=500,
    )
    settings = {key: value for key, value in asdict(config).items() if _is_plain(value)}
    task = {
        "sample_rate": 16_000,
        "feature_type": "fbank",
        "feature_dim": 128,
        "feature_rate": 100,
        "mask_type": "random_mask",
    }
    model = module.MAE_AST(SimpleNamespace(**settings), SimpleNamespace(**task))
    # Statistics of its spectrograms, which batch normalisation gathered in pre-training.
    model.batch_norm.running_mean.fill_(-8.0)
    model.batch_norm.running_var.fill_(20.0)
    return {"cfg": {"model": settings, "task": task}, "model": model.state_dict()}


def multires_hubert() -> dict[str, Any]:
    module = of_s3prl("multires_hubert.hubert_model")
    config = module.MultiresHubertConfig(
        label_rate=50, label_rate_ratios=[1, 2], **SIZE, final_dim=16
    )
    task = module.MultiresHubertPretrainingConfig(label_rate=50, label_rate_ratios=[1, 2])
    symbols = [[str(number) for number in range(8)]] * 2
    model = module.MultiresHubertModel(config, task, symbols)
    checkpoint = _converted(model, config, normalize=False)
    checkpoint["task_cfg"] |= {"label_rate": 50, "label_rate_ratios": [1, 2]}
    return {**checkpoint, "dictionaries_symbols": symbols}


def byol_a() -> dict[str, Any]:
    return dict(of_s3prl("byol_a.byol_a").AudioNTT2020(d=512).state_dict())


def byol_s() -> dict[str, Any]:
    import_hub("byol_s")
    return dict(of_s3prl("byol_s.byol_a.models.audio_ntt").AudioNTT2020(64, 2048).state_dict())


def decoar() -> dict[str, Any]:
    with smaller_decoar():
        return {"model": of_s3prl("decoar.decoar").Decoar().state_dict()}


def decoar2() -> dict[str, Any]:
    with smaller_decoar():
        return {"model": of_s3prl("decoar2.decoar2").Decoar2().state_dict()}


@contextlib.contextmanager
def smaller_decoar() -> Iterator[None]:
    """Their sizes are fixed in s3prl's code: reduce widths of 1024 to 16, of 768 to 24."""

    def narrower(layer: Callable[..., Any]) -> Callable[..., Any]:
        def _layer(*sizes: int, **named: Any) -> Any:
            return layer(
                *(WIDTH if size == 1024 else size for size in sizes),
                **{key: WIDTH if held == 1024 else held for key, held in named.items()},
            )

        return _layer

    layers = SimpleNamespace(
        LSTM=narrower(torch.nn.LSTM),
        Linear=narrower(torch.nn.Linear),
        ModuleList=torch.nn.ModuleList,
    )
    sizes = {key: held for key, held in SIZE.items() if key != "conv_feature_layers"}
    with contextlib.ExitStack() as patches:
        for module in ("decoar.decoar", "decoar_layers.decoar"):
            patches.enter_context(mock.patch.object(of_s3prl(module), "nn", layers))
        arguments = of_s3prl("decoar2.decoar2").args
        patches.enter_context(mock.patch.dict(arguments, sizes))
        yield


MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "apc_local": apc,
    "npc_local": npc,
    "wav2vec2_local": wav2vec2,
    "hubert_local": hubert,
    "data2vec_local": data2vec,
    "wavlm_local": wavlm,
    "unispeech_sat_local": wavlm,
    "distiller_local": distiller,
    "mockingjay_local": mockingjay,
    "tera_local": mockingjay,
    "audio_albert_local": audio_albert,
    "cpc_local": cpc,
    "wav2vec_local": wav2vec,
    "lighthubert_local": lighthubert,
    "mae_ast_local": mae_ast,
    "multires_hubert_local": multires_hubert,
    "vq_wav2vec_custom": vq_wav2vec,
    "spec_augment_local": mockingjay,
    "decoar_local": decoar,
    "decoar_layers_local": decoar,
    "decoar2_local": decoar2,
}
"""A function that creates the checkpoint, by the name in the zoo."""

DOWNLOADED: dict[str, Callable[[], dict[str, Any]]] = {
    "wavlm_base_plus": wavlm,
    "wav2vec2": wav2vec2,
    "hubert_base_robust_mgr": hubert,
    "distilhubert": distiller,
    "tera": mockingjay,
    "vq_apc": apc,
    "vq_wav2vec_gumbel": lambda: wav2vec(vq_type="gumbel", vq_vars=8),
    "byol_a_512": byol_a,
    "byol_s_default": byol_s,
}
"""The same for names with their own URL: the file there."""


def make_checkpoint(name: str, path: Path) -> Path:
    """Write a checkpoint for an upstream of the zoo, reproducibly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({**MAKERS, **DOWNLOADED}[name](), path)
    return path
