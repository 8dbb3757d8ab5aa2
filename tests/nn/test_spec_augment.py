"""SpecAugment: masks, warp, reproducibility, unchanged input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_mtl.nn import SpecAugment
from tests.mistakes import user_error


def ones(*lengths: int, channels: int = 60) -> list[Tensor]:
    return [torch.ones(length, channels) for length in lengths]


def only(**settings: Any) -> SpecAugment:
    """A SpecAugment with the given settings and all else switched off."""
    off = {"apply_time_warp": False, "apply_freq_mask": False, "apply_time_mask": False}
    return SpecAugment(**{**off, **settings})


def runs(hidden: Tensor) -> list[int]:
    """Lengths of the runs of True."""
    text = "".join("x" if value else " " for value in hidden.tolist())
    return [len(run) for run in text.split()]


def test_the_input_is_never_changed_and_gradients_flow_back() -> None:
    torch.manual_seed(0)
    features = [torch.randn(n, 300, requires_grad=True) for n in (200, 90)]
    plain = [torch.randn(50, 300)]
    before = [f.detach().clone() for f in [*features, *plain]]
    augmented = SpecAugment()([*features, *plain])
    for feature, copy in zip([*features, *plain], before, strict=True):
        assert torch.equal(feature.detach(), copy)
    sum(a.square().sum() for a in augmented).backward()
    for feature, changed in zip(features, augmented, strict=False):
        assert changed.shape == feature.shape
        assert not torch.equal(changed, feature)
        assert feature.grad is not None
        assert feature.grad.any()


def test_evaluation_mode_changes_nothing() -> None:
    features = [torch.randn(100, 80)]
    assert torch.equal(SpecAugment().eval()(features)[0], features[0])


def test_the_same_seed_gives_the_same_features() -> None:
    features = [torch.randn(100, 80), torch.randn(70, 80)]
    augment = SpecAugment()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.cat(augment(features)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_given_generator_leaves_the_global_one_unchanged() -> None:
    features = [torch.randn(100, 80)]
    state = torch.get_rng_state()
    first = SpecAugment()(features, torch.Generator().manual_seed(3))[0]
    second = SpecAugment()(features, torch.Generator().manual_seed(3))[0]
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_channel_masks_have_widths_in_range() -> None:
    torch.manual_seed(0)
    augment = only(apply_freq_mask=True, freq_mask_width_range=(3, 6), num_freq_mask=1)
    widths, starts = set(), set()
    for _ in range(300):
        hidden = augment(ones(9))[0] == 0
        assert (hidden == hidden[0]).all()
        (width,) = runs(hidden[0])
        widths.add(width)
        starts.add(int(hidden[0].float().argmax()))
    assert widths == {3, 4, 5}
    assert {0, 30} <= starts
    assert max(starts) <= 57


def test_time_masks_have_widths_in_range() -> None:
    torch.manual_seed(0)
    augment = only(apply_time_mask=True, time_mask_width_range=(0, 4), num_time_mask=1)
    widths = set()
    for _ in range(300):
        hidden = augment(ones(20))[0] == 0
        assert (hidden == hidden[:, :1]).all()
        widths.add(sum(runs(hidden[:, 0])))
    assert widths == {0, 1, 2, 3}


def test_the_number_of_masks_is_as_set_and_masks_differ_between_utterances() -> None:
    torch.manual_seed(0)
    augment = only(apply_time_mask=True, time_mask_width_range=(2, 3), num_time_mask=4)
    batch = augment(ones(400, 400, 400))
    found = [runs(utterance[:, 0] == 0) for utterance in batch]
    assert all(sum(lengths) in range(4, 9) for lengths in found)
    assert not torch.equal(batch[0], batch[1])


def test_a_mask_wider_than_the_utterance_hides_all_of_it() -> None:
    augment = only(apply_time_mask=True, time_mask_width_range=(30, 31), num_time_mask=1)
    assert not augment(ones(10))[0].any()


def test_the_warp_moves_frames_in_order_by_no_more_than_the_window() -> None:
    torch.manual_seed(0)
    augment = only(apply_time_warp=True, time_warp_window=5, time_warp_mode="bilinear")
    times = torch.arange(60.0)[:, None].repeat(1, 3)
    moves = []
    for _ in range(100):
        warped = augment([times])[0]
        assert warped.shape == times.shape
        assert (warped.diff(dim=0) >= 0).all()
        assert torch.equal(warped[:, 0], warped[:, 2])
        moves.append(float((warped - times).abs().max()))
    assert 4 < max(moves) <= 5.5
    assert min(moves) < 1


def resized(utterance: Tensor, center: int, moved: int, mode: str) -> Tensor:
    """An utterance with the frame `center` moved, by torch's interpolation."""
    frames, channels = utterance.shape
    parts = ((utterance[:center], moved), (utterance[center:], frames - moved))
    return torch.cat(
        [
            F.interpolate(part[None, None], (length, channels), mode=mode, align_corners=False)[
                0, 0
            ]
            for part, length in parts
        ]
    )


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_the_warp_is_torchs_interpolation_on_both_sides_of_a_frame(mode: str) -> None:
    torch.manual_seed(0)
    features = [torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (21, 12, 9, 13)]
    augment = only(apply_time_warp=True, time_warp_window=5, time_warp_mode=mode)
    seen = set()
    for _ in range(20):
        warped = augment(features)
        assert torch.equal(warped[2], features[2])
        for utterance, found in zip(features, warped, strict=True):
            if len(utterance) < 11:
                continue
            matches = [
                (center, moved, expected)
                for center in range(5, len(utterance) - 5)
                for moved in range(center - 4, center + 6)
                if torch.allclose(expected := resized(utterance, center, moved, mode), found)
            ]
            assert matches
            seen.add((len(utterance), *matches[0][:2]))
            directions = torch.randn_like(found)
            (gradient,) = torch.autograd.grad(found, utterance, directions, retain_graph=True)
            (reference,) = torch.autograd.grad(matches[0][2], utterance, directions)
            torch.testing.assert_close(gradient, reference)
    assert len(seen) > 30


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_the_warp_leaves_constant_features_unchanged(mode: str) -> None:
    constant = torch.randn(1, 20).expand(50, 20)
    augment = only(apply_time_warp=True, time_warp_mode=mode)
    torch.testing.assert_close(augment([constant])[0], constant)


def test_utterances_of_twice_the_window_are_not_warped() -> None:
    augment = only(apply_time_warp=True, time_warp_window=5)
    short, longer = torch.randn(10, 4), torch.randn(11, 4)
    assert torch.equal(augment([short])[0], short)
    torch.manual_seed(0)
    assert any(not torch.equal(augment([longer])[0], longer) for _ in range(10))


@pytest.mark.parametrize(
    "settings",
    [
        {"time_mask_width_range": (5, 5)},
        {"freq_mask_width_range": (-1, 5)},
        {"freq_mask_width_range": (1, 2, 3)},
        {"time_warp_mode": "cubic"},
        {"num_time_mask": -1},
    ],
)
def test_invalid_settings_are_user_errors(settings: dict[str, Any]) -> None:
    with user_error("invalid-value", where=rf"specaug\.{next(iter(settings))}"):
        SpecAugment(**settings)
