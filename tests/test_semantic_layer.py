"""SeMask's Semantic Layer and the decoder of its prior maps, on their own."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.parts.semantic_layer import (
    SemanticAttention,
    SemanticLayer,
    semantic_decoder,
)
from models.parts.windows import Windows

Layer = TypeVar("Layer", SemanticLayer, SemanticAttention)


def fed_back(layer: Layer) -> Layer:
    """The module with a lambda that is not zero, in evaluation mode and double precision."""
    layer = layer.double().eval()
    for name, parameter in layer.named_parameters():
        if name.endswith("lambda_"):
            torch.nn.init.constant_(parameter, 0.7)
    return layer


def test_a_new_semantic_layer_is_exactly_its_layer_norm() -> None:
    layer = SemanticLayer(channels=12, num_classes=5, window=4)
    x = torch.randn(2, 9, 6, 12)
    assert torch.equal(layer(x)[0], layer.norm(x))


def test_a_new_semantic_layer_learns_to_feed_attention_back() -> None:
    layer = SemanticLayer(channels=12, num_classes=5, window=4)
    y, _ = layer(torch.randn(2, 9, 6, 12))
    (y * torch.randn_like(y)).sum().backward()
    gradient = layer.attention.lambda_.grad
    assert gradient is not None
    assert gradient.item() != 0


def test_attention_is_the_plain_formula() -> None:
    attention = fed_back(SemanticAttention(channels=6, num_classes=3))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    y, scores = attention(x)

    def linear(layer: torch.nn.Linear, token: torch.Tensor) -> torch.Tensor:
        return layer.weight @ token + layer.bias

    for n in range(2):
        for i in range(5):
            query = linear(attention.query, x[n, i])
            similarity = torch.stack([query @ linear(attention.key, x[n, j]) for j in range(5)])
            share = similarity.exp() / similarity.exp().sum()
            values = torch.stack([linear(attention.value, x[n, j]) for j in range(5)])
            expected = 0.7 * linear(attention.projection, share @ values) + x[n, i]
            torch.testing.assert_close(y[n, i], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(scores[n, i], query)


def test_attention_in_single_precision_is_within_1e_5_of_double() -> None:
    attention = SemanticAttention(channels=96, num_classes=150, fixed_lambda=1.0).eval()
    x = torch.randn(3, 49, 96)
    single = attention(x)[0]
    torch.testing.assert_close(single.double(), attention.double()(x.double())[0], rtol=0, atol=1e-5)


def test_one_window_that_covers_the_map_is_global_attention() -> None:
    windowed = fed_back(SemanticLayer(channels=6, num_classes=3, window=8))
    globally = fed_back(SemanticLayer(channels=6, num_classes=3, window=None))
    globally.load_state_dict(windowed.state_dict())
    x = torch.randn(2, 8, 8, 6, dtype=torch.float64)
    for a, b in zip(windowed(x), globally(x), strict=True):
        torch.testing.assert_close(a, b)


def test_windows_do_not_see_each_other() -> None:
    layer = fed_back(SemanticLayer(channels=6, num_classes=3, window=4))
    x = torch.randn(1, 8, 8, 6, dtype=torch.float64)
    moved = x.clone()
    moved[:, :4, :4] += torch.randn(4, 4, 6, dtype=torch.float64)
    changed = (layer(x)[0] != layer(moved)[0]).any(dim=-1)[0]
    assert changed[:4, :4].all()
    assert changed.sum() == 16


def test_padding_follows_the_norm_and_takes_part_in_the_attention() -> None:
    layer = fed_back(SemanticLayer(channels=6, num_classes=3, window=4))
    for linear in (layer.attention.key, layer.attention.value):
        torch.nn.init.normal_(linear.bias)  # what makes the zeros visible
    x = torch.randn(1, 3, 2, 6, dtype=torch.float64)
    padded = torch.zeros(1, 4, 4, 6, dtype=torch.float64)
    padded[:, :3, :2] = layer.norm(x)
    expected, _ = layer.attention(padded.flatten(1, 2))
    torch.testing.assert_close(layer(x)[0], expected.view(1, 4, 4, 6)[:, :3, :2])


@pytest.mark.parametrize("window", [3, None])
def test_the_prior_map_is_the_class_scores_of_the_normalised_tokens(window: int | None) -> None:
    layer = SemanticLayer(channels=6, num_classes=5, window=window)
    x = torch.randn(2, 7, 4, 6)
    _, prior = layer(x)
    torch.testing.assert_close(prior, layer.attention.query(layer.norm(x)).permute(0, 3, 1, 2))


def test_a_fixed_lambda_is_no_parameter_and_no_part_of_a_checkpoint() -> None:
    layer = SemanticLayer(channels=6, num_classes=3, window=None, fixed_lambda=1.0)
    assert not any(
        name.endswith("lambda_") for name in [*dict(layer.named_parameters()), *layer.state_dict()]
    )
    assert layer.attention.lambda_.item() == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 4))
def test_windows_are_padded_shifted_and_cut_and_come_back(
    height: int, width: int, side: int, shift: int
) -> None:
    right, bottom = -width % side, -height % side
    grid = (2, (height + bottom) // side, side, (width + right) // side, side, 3)

    def cut(x: Tensor) -> Tensor:  # one step after the other
        padded = F.pad(x, (0, 0, 0, right, 0, bottom)).roll((-shift, -shift), dims=(1, 2))
        return padded.reshape(grid).transpose(2, 3).reshape(-1, side * side, 3)

    x = torch.randn(2, height, width, 3, requires_grad=True)
    windows = Windows(height, width, side, shift)
    assert torch.equal(windows.cut(x), cut(x))
    assert torch.equal(windows.cut(x.detach()), cut(x))
    assert torch.equal(windows.join(windows.cut(x)), x)
    weights = torch.randn_like(cut(x))
    (expected,) = torch.autograd.grad((cut(x) * weights).sum(), x)
    (actual,) = torch.autograd.grad((windows.cut(x) * weights).sum(), x)
    assert torch.equal(actual, expected)
    cuts = cut(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((windows.join(cuts) * x.detach()).sum(), cuts)
    assert torch.equal(gradient, cut(x))


@pytest.mark.parametrize("stages", [(1, 2, 3, 4), (1,), (3, 4), (1, 4)])
def test_the_semantic_decoder_upsamples_by_two_step_by_step_and_sums(stages: tuple[int, ...]) -> None:
    sizes = [(16 >> i, 32 >> i) for i in range(4)]
    priors = {stage: torch.randn(2, 3, *sizes[stage - 1], dtype=torch.float64) for stage in stages}
    expected = torch.zeros(2, 3, 16, 32, dtype=torch.float64)
    for stage, prior in priors.items():
        for _ in range(stage - 1):
            prior = F.interpolate(prior, scale_factor=2, mode="bilinear", align_corners=False)
        expected += prior
    torch.testing.assert_close(semantic_decoder(priors, sizes), expected)


def test_the_semantic_decoder_takes_stages_that_do_not_halve() -> None:
    sizes = [(17, 9), (9, 5), (5, 3), (3, 2)]
    priors = {i: torch.full((1, 2, *size), float(i)) for i, size in enumerate(sizes, 1)}
    summed = semantic_decoder(priors, sizes)
    torch.testing.assert_close(summed, torch.full((1, 2, 17, 9), 10.0))
