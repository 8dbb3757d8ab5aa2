"""`--format onnx` in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from s3prl_mtl.export import export, onnx_file
from s3prl_mtl.upstreams import Featurizer
from tests.export.tuned_runs import FIXTURES, layer_weights, save_run, tuned

CASES = [
    ("base_style", "hidden_states"),
    pytest.param(("large_style", "layer_results"), marks=pytest.mark.slow),
    pytest.param(("odd_frozen", "last_hidden_state"), marks=pytest.mark.slow),
    pytest.param(("odd_base", "hidden_states"), marks=pytest.mark.slow),
    pytest.param(("odd_large", "layer_results"), marks=pytest.mark.slow),
]


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: Any, waveform: Tensor) -> tuple[Tensor, Tensor]:
    states, features = session.run(
        ["hidden_states", "features"], {"waveform": waveform[None].numpy()}
    )
    return torch.from_numpy(states), torch.from_numpy(features)


@pytest.fixture(scope="module", params=CASES, ids="_".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """case, selection, file"""
    case, selection = request.param
    folder = tmp_path_factory.mktemp("onnx")
    saved = save_run(folder / "run", tuned(case), name="hubert_mine", selection=selection)
    return case, selection, export(saved, "onnx", folder / "encoder.onnx")


def test_onnxruntime_gives_our_features_at_any_length(exported: Any) -> None:
    case, selection, path = exported
    encoder, session = tuned(case), session_of(path)
    featurizer = Featurizer(encoder, selection)
    if featurizer.weights is not None:
        featurizer.weights.data = layer_weights(len(featurizer.weights))
    least = encoder.config.receptive_field
    generator = torch.Generator().manual_seed(1)
    for samples in (least, least + 1, 719, 720, 1303, 16_000, 16_001, 47_777, 320_000):
        wav = 0.1 * torch.randn(samples, generator=generator)
        states, features = run(session, wav)
        with torch.no_grad():
            hidden = encoder([wav])
            (wanted,) = featurizer(hidden)
        assert states.shape == (len(hidden.states), 1, hidden.lengths[0], encoder.hidden_size)
        torch.testing.assert_close(states[:, 0], hidden.states, atol=1e-4, rtol=0)
        torch.testing.assert_close(features[0], wanted, atol=1e-4, rtol=0)


def test_onnxruntime_gives_the_states_that_fairseq_gave(exported: Any) -> None:
    case, _, path = exported
    session = session_of(path)
    truth = torch.load(FIXTURES / "export" / f"{case}.pt", weights_only=True)
    for wav, wanted in zip(truth["wavs"], truth["hidden_states"], strict=True):
        torch.testing.assert_close(run(session, wav)[0][:, 0], wanted, atol=1e-4, rtol=0)


def noise(samples: int, level: float) -> Tensor:
    return level * torch.randn(samples, generator=torch.Generator().manual_seed(2))


STILL = {
    "silence": torch.zeros(3000),
    "silence of 20 s": torch.zeros(320_000),
    "a constant": torch.full((3000,), 0.01),
    "a high constant": torch.full((3000,), 0.5),
    "a constant of 20 s": torch.full((320_000,), -1.0),
    "a constant of one frame": torch.full((400,), 0.3),
    "noise far below the last bit of 16": noise(16_000, 1e-7),
    "noise on a constant": noise(16_000, 1e-4) + 0.5,
    "noise, then silence": torch.cat([noise(3000, 0.1), torch.zeros(13_000)]),
}


# The convolution before the norm rounds what is added to a constant: no norm brings it back.
TOLERANCE = {"noise on a constant": 1e-2}


@pytest.mark.parametrize("name", STILL)
def test_features_of_constant_waveforms_equal_double_precision(exported: Any, name: str) -> None:
    """In float32 torch's own GroupNorm is off by more: the truth is our encoder in float64."""
    case, _, path = exported
    encoder = tuned(case).double()
    with torch.no_grad():
        wanted = encoder([STILL[name].double()]).states.float()
    found = run(session_of(path), STILL[name])[0][:, 0]
    torch.testing.assert_close(found, wanted, atol=TOLERANCE.get(name, 1e-4), rtol=0)


def test_quiet_and_loud_speech_give_our_features(exported: Any) -> None:
    case, _, path = exported
    encoder = tuned(case)
    for wav in [noise(3000, level) + 0.01 for level in (0.01, 0.1, 10.0)]:
        with torch.no_grad():
            wanted = encoder([wav]).states
        torch.testing.assert_close(run(session_of(path), wav)[0][:, 0], wanted, atol=1e-4, rtol=0)


def test_a_batch_or_too_short_a_waveform_is_refused(exported: Any) -> None:
    case, _, path = exported
    session = session_of(path)
    least = tuned(case).config.receptive_field
    errors = (
        onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
        onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
        onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    )
    for shape in ((2, 1600), (1, least - 1)):
        with pytest.raises(errors):
            session.run(None, {"waveform": torch.zeros(shape).numpy()})


def test_metadata_describe_the_encoder_without_local_paths(exported: Any) -> None:
    case, selection, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    told = {entry.key: entry.value for entry in model.metadata_props}
    config = tuned(case).config
    assert told == {
        "upstream": "hubert_mine",
        "step": "40",
        "feature_selection": selection,
        "sample_rate": "16000",
        "least_samples": str(config.receptive_field),
        "samples_per_frame": str(config.total_stride),
    }
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    content = path.read_bytes()
    for trace in (str(Path(onnx_file.__file__).parent), "site-packages", "stack_trace"):
        assert trace.encode() not in content
    parameters = sum(value.numel() * 4 for value in tuned(case).parameters())
    assert len(content) < 1.1 * parameters + 200_000
    assert list(path.parent.glob("*.onnx*")) == [path]


@pytest.mark.slow
def test_a_large_encoder_has_its_parameters_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_BYTES_IN_ONE_FILE", 1000)
    encoder = tuned("odd_base")
    path = export(save_run(tmp_path / "run", encoder), "onnx", tmp_path / "out" / "big.onnx")
    assert sorted(file.name for file in path.parent.iterdir()) == ["big.onnx", "big.onnx.data"]
    wav = torch.linspace(-0.5, 0.5, 2000)
    with torch.no_grad():
        wanted = encoder([wav]).states
    found = run(session_of(path), wav)[0][:, 0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
