"""Protocols: windows, scales and flips, beside plain formulas of the authors' own."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.scoring.protocols import Protocol, predict, predict_each, window_starts

IMAGE = torch.rand(1, 3, 37, 53, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Scores of four classes at half the input's size, which depend on the surroundings of a pixel."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def test_the_default_is_one_look_at_the_whole_image(network: nn.Module) -> None:
    expected = resize(resize(network(IMAGE), (37, 53), False), (74, 106), False)
    assert torch.equal(predict(network, IMAGE, Protocol(), (74, 106)), expected)


def test_windows_stand_as_in_alignsegs_evaluation() -> None:
    # 872 x 872 over 1024 x 2048 with an overlap of a third: the last window is moved back to the border.
    stride = math.ceil(872 * (1 - 1 / 3))
    assert window_starts(1024, 872, stride) == [0, 152]
    assert window_starts(2048, 872, stride) == [0, 582, 1164, 1176]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_windows_cover_every_pixel_and_stay_inside(length: int, window: int, stride: int) -> None:
    length, stride = max(length, window), min(stride, window)
    starts = window_starts(length, window, stride)
    assert {p for start in starts for p in range(start, start + window)} == set(range(length))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.9])
def test_sliding_windows_average_the_scores_of_overlapping_windows(
    network: nn.Module, overlap: float, align_corners: bool
) -> None:
    tall, wide = 16, 24
    stride = math.ceil(tall * (1 - overlap))
    sums, counts = torch.zeros(1, 4, 37, 53), torch.zeros(1, 1, 37, 53)
    rows, columns = math.ceil((37 - tall) / stride) + 1, math.ceil((53 - wide) / stride) + 1
    for row, column in itertools.product(range(rows), range(columns)):
        bottom, right = min(row * stride + tall, 37), min(column * stride + wide, 53)
        window = (..., slice(bottom - tall, bottom), slice(right - wide, right))
        sums[window] += resize(network(IMAGE[window]), (tall, wide), align_corners).detach()
        counts[window] += 1
    protocol = Protocol(window=(tall, wide), overlap=overlap, align_corners=align_corners)
    torch.testing.assert_close(predict(network, IMAGE, protocol, (37, 53)), sums / counts)


def test_an_image_smaller_than_the_window_is_padded_at_the_right_and_the_bottom(network: nn.Module) -> None:
    protocol = Protocol(window=(48, 64), overlap=0.5)
    expected = resize(network(F.pad(IMAGE, (0, 11, 0, 11))), (48, 64), False)[..., :37, :53]
    torch.testing.assert_close(predict(network, IMAGE, protocol, (37, 53)), expected)


@pytest.mark.parametrize("average", ["scores", "softmax"])
def test_scales_and_flips_are_averaged_at_the_labels_size(network: nn.Module, average: str) -> None:
    scales, size = (0.5, 1.0, 1.75), (40, 60)
    results = []
    for scale, mirrored in itertools.product(scales, (False, True)):
        shape = (int(37 * scale + 0.5), int(53 * scale + 0.5))
        image = resize(IMAGE, shape, False)
        scores = resize(network(image.flip(-1) if mirrored else image), shape, False)
        scores = resize(scores, size, False)
        scores = scores.flip(-1) if mirrored else scores
        results.append(scores.softmax(1) if average == "softmax" else scores)
    protocol = Protocol(scales=scales, flip=True, average=average)  # type: ignore[arg-type]
    found = predict(network, IMAGE, protocol, size)
    torch.testing.assert_close(found, torch.stack(results).mean(0), rtol=1e-5, atol=1e-6)


def test_scaled_images_have_windows_of_their_own(network: nn.Module) -> None:
    """AlignSeg's multi-scale protocol, as its authors have to have meant it."""
    sliding = Protocol(window=(16, 16), overlap=1 / 3, align_corners=True)
    results = []
    for scale in (0.75, 1.0, 1.25):
        size = (int(37 * scale + 0.5), int(53 * scale + 0.5))
        image = resize(IMAGE, size, True)
        plain = predict(network, image, sliding, size)
        mirrored = predict(network, image.flip(-1), sliding, size).flip(-1)
        results.append(resize((plain + mirrored) / 2, (37, 53), True))
    protocol = sliding.model_copy(update={"scales": (0.75, 1.0, 1.25), "flip": True})
    found = predict(network, IMAGE, protocol, (37, 53))
    torch.testing.assert_close(found, torch.stack(results).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1024, 2048, (512, 1024)),  # the short side decides
        (100, 1000, (205, 2048)),  # the limit of the long side does, and a half goes up
        (640, 480, (683, 512)),
    ],
)
def test_a_short_side_is_limited_by_the_long_one(height: int, width: int, expected: tuple[int, int]) -> None:
    assert Protocol(short_sides=((512, 2048),)).input_sizes(height, width) == [expected]


def test_the_network_sees_multiples_and_the_padding_is_cut_off() -> None:
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[-2:]))
        return images

    result = predict(network, IMAGE, Protocol(pad_to=32), (37, 53))
    assert seen == [(64, 64)]
    assert torch.equal(result, IMAGE)


def test_memory_does_not_grow_with_the_number_of_scales(network: nn.Module) -> None:
    """Only the running sum, and the scores of one pass, are alive when the network is called."""
    import gc

    alive = []

    def watched(images: Tensor) -> Tensor:
        gc.collect()
        large = [x for x in gc.get_objects() if type(x) is Tensor and x.ndim == 4 and x.shape[1] == 4]
        alive.append(sum(x.numel() for x in large if x.shape[0] == 1 and x.shape[-1] > 5))
        return network(images)  # type: ignore[no-any-return]

    predict(watched, IMAGE, Protocol(scales=(1.0,) * 6, flip=True), (37, 53))
    assert max(alive[3:]) <= alive[2]


def test_an_image_in_a_batch_gets_what_it_gets_alone(network: nn.Module) -> None:
    batch = torch.rand(3, 3, 20, 30, generator=torch.Generator().manual_seed(1))
    protocol = Protocol(window=(16, 16), overlap=0.5, scales=(0.9, 1.5), flip=True, average="softmax")
    together = predict(network, batch, protocol, (20, 30))
    alone = torch.cat([predict(network, image[None], protocol, (20, 30)) for image in batch])
    torch.testing.assert_close(together, alone)


def test_several_score_maps_are_averaged_apart(network: nn.Module) -> None:
    protocol = Protocol(scales=(0.5, 1.0), flip=True, average="softmax")
    first, second = predict_each(lambda x: (network(x), -network(x)), IMAGE, protocol, (37, 53))
    torch.testing.assert_close(first, predict(network, IMAGE, protocol, (37, 53)))
    torch.testing.assert_close(second, predict(lambda x: -network(x), IMAGE, protocol, (37, 53)))


def test_the_networks_own_tensors_stay_as_they_are() -> None:
    kept = torch.rand(1, 4, 37, 53)
    before = kept.clone()
    predict(lambda _: kept, IMAGE, Protocol(scales=(1.0, 1.0, 1.0), flip=True), (37, 53))
    assert torch.equal(kept, before)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from([None, (8, 8), (50, 7)]))
def test_every_size_of_image_gets_scores(
    height: int, width: int, flip: bool, window: tuple[int, int] | None
) -> None:
    image = torch.zeros(1, 3, height, width)
    protocol = Protocol(window=window, scales=(0.3, 1.0), flip=flip, pad_to=4)
    assert predict(lambda x: x, image, protocol, (height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"window": (8, 8), "overlap": 1.0}, "less than 1"),
        ({"overlap": 0.5}, "no effect without a window"),
        ({"scales": ()}, "at least 1"),
        ({"scales": (0.0,)}, "greater than 0"),
        ({"scales": (0.5,), "short_sides": ((512, 2048),)}, "give one of them"),
        ({"short_sides": ()}, "at least one pair"),
        ({"short_sides": ((512, 100),)}, "less than the shorter"),
        ({"average": "votes"}, "'scores' or 'softmax'"),
        ({"windows": (8, 8)}, "did you mean 'window'"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(given_settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Protocol(**given_settings)  # type: ignore[arg-type]


def test_an_image_without_pixels_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="with pixels"):
        predict(network, torch.zeros(1, 3, 0, 4), Protocol(), (4, 4))
