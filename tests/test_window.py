from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from experiments.samples.window import resized_window


def photograph(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.randoms(use_true_random=False),
)
def test_a_window_is_cut_out_of_the_resized_image(
    have: tuple[int, int], want: tuple[int, int], random: Random
) -> None:
    image = photograph(*have)
    top, left = (random.randint(0, side - 1) for side in want)
    height, width = want[0] - top, want[1] - left
    whole = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (want[1], want[0]), Image.Resampling.BILINEAR
    )
    expected = np.asarray(whole)[top : top + height, left : left + width]
    window = resized_window(image, want, (top, left, height, width))
    # Pillow rounds to whole levels after each of two passes, so that either is within one level of the exact
    # value. In noise like this one value in six hundred thousand is two levels off.
    assert np.abs(window.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.3, 2.0])
def test_a_window_is_torchvision_s_to_one_level(scale: float) -> None:
    image = photograph(64, 96)
    size = [round(64 * scale), round(96 * scale)]
    expected = TF.crop(TF.resize(tv_tensors.Image(image), size), 5, 7, 20, 30)
    window = resized_window(image, size, (5, 7, 20, 30))
    assert (window.int() - expected.int()).abs().max() <= 1
