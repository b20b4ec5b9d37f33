"""Feature alignment and the pyramids that use it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from models.decoders.fapn import DeformableAlignment, FeatureAlignedPyramid, PyramidLevel


def test_a_new_alignment_samples_without_offsets_at_half_weight() -> None:
    alignment = DeformableAlignment(32)
    lateral, other = torch.randn(2, 1, 32, 7, 5).unbind(0)
    convolved = 0.5 * F.conv2d(other, alignment.weight, padding=1)
    torch.testing.assert_close(alignment(lateral, other), convolved.relu() + lateral)


def test_offsets_move_what_is_aligned() -> None:
    alignment = DeformableAlignment(32)
    assert alignment.sampling.bias is not None
    with torch.no_grad():
        alignment.weight.zero_()
        alignment.weight[:, :, 1, 1] = torch.eye(32)  # only the centre tap
        alignment.sampling.bias[: 2 * 8 * 9].fill_(1.0)  # one pixel down and to the right
        alignment.sampling.bias[2 * 8 * 9 :].fill_(50.0)  # at full weight
    lateral, other = torch.zeros(1, 32, 6, 6), torch.rand(1, 32, 6, 6)
    aligned = alignment(lateral, other)
    torch.testing.assert_close(aligned[..., :5, :5], other[..., 1:, 1:])


def test_alignment_is_as_exact_in_half_precision_as_its_input() -> None:
    alignment = DeformableAlignment(32).bfloat16()
    lateral, other = torch.randn(2, 1, 32, 4, 4, dtype=torch.bfloat16).unbind(0)
    assert alignment(lateral, other).dtype == torch.bfloat16


def test_a_level_without_alignment_is_that_of_a_feature_pyramid() -> None:
    level = PyramidLevel(16, 32, align=False)
    feature, above = torch.randn(1, 16, 9, 7), torch.randn(1, 32, 5, 4)
    upsampled = F.interpolate(above, (9, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(level(feature, above), level.output(level.lateral(feature) + upsampled))


def test_the_pyramid_gives_its_three_deepest_levels_and_a_mask_feature_at_the_shallowest() -> None:
    pyramid = FeatureAlignedPyramid([8, 16, 24, 40], 32)
    features = [torch.randn(1, c, 16 >> i, 24 >> i) for i, c in enumerate([8, 16, 24, 40])]
    levels, mask_feature = pyramid(features)
    assert [tuple(x.shape) for x in levels] == [(1, 32, 2, 3), (1, 32, 4, 6), (1, 32, 8, 12)]
    assert mask_feature.shape == (1, 32, 16, 24)
