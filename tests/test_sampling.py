"""Guided upsampling and sampling at a shifted grid."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.parts.sampling import GuidedUpsampling, guided_upsample, sample_shifted

MODES: tuple[Literal["bilinear", "nearest"], ...] = ("bilinear", "nearest")


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), factor=st.sampled_from((1, 2, 4, 8, 16)))
def test_zero_offsets_are_bilinear_upsampling(height: int, width: int, factor: int) -> None:
    features = random(1, 2, height, width)
    size = (height * factor, width * factor)
    upsampled = guided_upsample(features, torch.zeros(1, 2, *size))
    torch.testing.assert_close(upsampled, F.interpolate(features, size, mode="bilinear"), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(map_size=st.tuples(*[st.integers(1, 40)] * 2), size=st.tuples(*[st.integers(1, 200)] * 2))
def test_zero_offsets_are_bilinear_resizing_by_any_factor(
    map_size: tuple[int, int], size: tuple[int, int]
) -> None:
    features = random(1, 2, *map_size, dtype=torch.float64)
    resized = guided_upsample(features, torch.zeros(1, 2, *size, dtype=torch.float64))
    torch.testing.assert_close(resized, F.interpolate(features, size, mode="bilinear"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_zero_offsets_with_the_nearest_form_repeat_pixels(factor: int) -> None:
    features = random(2, 3, 7, 9)
    upsampled = guided_upsample(features, torch.zeros(2, 2, 7 * factor, 9 * factor), "nearest")
    assert torch.equal(upsampled, F.interpolate(features, scale_factor=factor, mode="nearest-exact"))


@pytest.mark.parametrize("mode", MODES)
def test_guided_upsampling_follows_the_equation_of_the_paper(mode: Literal["bilinear", "nearest"]) -> None:
    (h, w), (height, width) = (5, 6), (13, 9)
    features, offsets = random(1, 1, h, w), 6 * random(1, 2, height, width, seed=1)
    upsampled = guided_upsample(features, offsets, mode)[0, 0]
    for row, column in itertools.product(range(height), range(width)):
        dx, dy = offsets[0, :, row, column].tolist()
        # The output pixel's place in the map, and the offset in pixels of the map.
        x = min(max((column + 0.5 + dx) * w / width - 0.5, 0), w - 1)
        y = min(max((row + 0.5 + dy) * h / height - 0.5, 0), h - 1)
        if mode == "nearest":
            expected = features[0, 0, round(y), round(x)].item()
        else:
            expected = sum(
                features[0, 0, n, m].item() * max(0, 1 - abs(x - m)) * max(0, 1 - abs(y - n))
                for n, m in itertools.product(range(h), range(w))
            )
        assert upsampled[row, column].item() == pytest.approx(expected, abs=1e-5)


def test_offsets_are_output_pixels_x_before_y_positive_to_the_right_and_down() -> None:
    features = random(1, 1, 6, 10)
    offsets = torch.zeros(1, 2, 24, 40)
    offsets[:, 0], offsets[:, 1] = 4, 8  # one pixel of the map to the right, two down
    shifted = guided_upsample(features, offsets)
    plain = F.interpolate(features, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(shifted[..., :-8, :-4], plain[..., 8:, 4:])


def test_beyond_the_edge_is_the_edge() -> None:
    features = random(1, 3, 5, 7)
    for offset, expected in ((1000.0, features[..., -1:, -1:]), (-1000.0, features[..., :1, :1])):
        sampled = guided_upsample(features, torch.full((1, 2, 10, 14), offset))
        torch.testing.assert_close(sampled, expected.expand(1, 3, 10, 14))


def test_guided_upsampling_has_exact_gradients_in_map_and_offsets() -> None:
    features = random(2, 2, 3, 5, dtype=torch.float64).requires_grad_()
    offsets = (2 * random(2, 2, 7, 8, dtype=torch.float64, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(guided_upsample, (features, offsets))


def test_the_nearest_form_has_a_gradient_in_the_map_alone() -> None:
    features, offsets = random(1, 2, 4, 4).requires_grad_(), random(1, 2, 8, 8).requires_grad_()
    guided_upsample(features, offsets, "nearest").sum().backward()
    assert features.grad is not None
    assert features.grad.sum() == 2 * 8 * 8
    assert offsets.grad is not None
    assert not offsets.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_more_than_its_own_rounding(dtype: torch.dtype) -> None:
    # 1600 pixels: in half precision neighbouring coordinates would coincide.
    features, offsets = random(1, 2, 4, 200, dtype=dtype), random(1, 2, 32, 1600, seed=1).to(dtype)
    sampled = guided_upsample(features, offsets)
    assert sampled.dtype == dtype
    exact = guided_upsample(features.double(), offsets.double())
    tolerance = torch.finfo(dtype).eps * features.abs().max().item()
    torch.testing.assert_close(sampled.double(), exact, rtol=0, atol=tolerance)


def test_guided_upsampling_compiles_without_graph_breaks() -> None:
    module = GuidedUpsampling(3).double()  # in which another order of operations makes no difference
    torch.nn.init.ones_(module.offsets.weight)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = random(1, 2, 5, 7).double(), random(1, 3, 10, 14, seed=1).double(), (37, 41)
    for ours, expected in zip(compiled(*inputs), module(*inputs), strict=True):
        torch.testing.assert_close(ours, expected)


def test_sampling_makes_no_tensor_on_the_host() -> None:
    # An operation on tensors of two devices is refused, and nothing else here is on ``meta``.
    features, offsets = torch.empty(2, 3, 4, 5, device="meta"), torch.empty(2, 2, 9, 9, device="meta")
    assert guided_upsample(features, offsets).device.type == "meta"
    for align_corners in (True, False):
        sampled = sample_shifted(features, offsets, unit=(1, 1), align_corners=align_corners)
        assert sampled.device.type == "meta"


def test_a_new_guided_upsampling_module_is_plain_bilinear_upsampling() -> None:
    scores, guidance = random(2, 4, 6, 9), random(2, 8, 12, 18, seed=1)
    upsampled, offsets = GuidedUpsampling(8)(scores, guidance, (47, 71))
    assert offsets.shape == (2, 2, 47, 71)
    assert not offsets.any()
    torch.testing.assert_close(upsampled, F.interpolate(scores, (47, 71), mode="bilinear"), rtol=0, atol=1e-5)


def test_the_module_predicts_in_pixels_of_the_scores_and_reports_pixels_of_the_output() -> None:
    module = GuidedUpsampling(1)
    with torch.no_grad():
        module.offsets.weight.fill_(1)
    scores, guidance = random(1, 4, 6, 9), torch.ones(1, 1, 3, 3)
    _, offsets = module(scores, guidance, (12, 72))
    assert (offsets[:, 0] == 8).all()
    assert (offsets[:, 1] == 2).all()


def test_the_module_learns_offsets_that_move_a_boundary() -> None:
    scores = torch.zeros(1, 1, 4, 4)
    scores[..., 2:] = 1  # a step between the second and the third column
    target = torch.zeros(1, 1, 32, 32)
    target[..., 12:] = 1  # which belongs four output pixels further to the left
    module = GuidedUpsampling(1)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    losses = []
    for _ in range(60):
        upsampled, offsets = module(scores, torch.ones(1, 1, 4, 4), (32, 32))
        loss = F.mse_loss(upsampled, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert offsets[:, 0].mean().item() == pytest.approx(4, abs=1)
    assert not offsets[:, 1].any()


def test_the_module_samples_nearest_in_evaluation_only() -> None:
    module = GuidedUpsampling(3, sampling="nearest")
    torch.nn.init.ones_(module.offsets.weight)
    inputs = random(1, 1, 4, 4), random(1, 3, 8, 8, seed=1), (32, 32)
    values = set(inputs[0].flatten().tolist())
    assert set(module.eval()(*inputs)[0].flatten().tolist()) == values
    assert not set(module.train()(*inputs)[0].flatten().tolist()) <= values


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(16, 24), (9, 5), (1, 1)])
def test_a_shifted_grid_without_shift_is_bilinear_upsampling(
    align_corners: bool, size: tuple[int, int]
) -> None:
    # Between zeros, as the sampler sees them outside the map.
    features = F.pad(random(2, 3, 2, 4), (1, 1, 1, 1))
    sampled = sample_shifted(features, torch.zeros(2, 2, *size), unit=(1, 1), align_corners=align_corners)
    expected = F.interpolate(features, size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-5)


def test_a_unit_of_shift_is_in_normalised_coordinates() -> None:
    features = random(1, 1, 8, 16)
    offsets = torch.zeros(1, 2, 8, 16)
    offsets[:, 0], offsets[:, 1] = 3, -2
    moved = sample_shifted(features, offsets, unit=(2 / 16, 2 / 8), align_corners=False)
    torch.testing.assert_close(moved[..., 2:, :-3], features[..., :-2, 3:])
    assert not moved[..., :2, :].any()  # zeros lie outside the map


def test_the_grid_can_span_the_map_whatever_the_corners_mean() -> None:
    # The outermost samples then lie on the outer edges, half way between the map and the zeros.
    features = torch.ones(1, 1, 3, 4)
    sampled = sample_shifted(features, torch.zeros(1, 2, 3, 4), unit=(1, 1), align_corners=False, span=True)
    assert sampled[0, 0, 0, 0] == 0.25
    assert sampled[0, 0, 1, 0] == 0.5


def test_a_shifted_grid_has_exact_gradients() -> None:
    features = random(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    offsets = random(1, 2, 6, 7, dtype=torch.float64, seed=1).requires_grad_()

    def sample(features: Tensor, offsets: Tensor) -> Tensor:
        return sample_shifted(features, offsets, unit=(0.3, 0.4), align_corners=True)

    assert torch.autograd.gradcheck(sample, (features, offsets))
