"""What a recipe's losses promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from experiments.training.losses import LOSSES, hard_pixels
from models.segmenter import IGNORE_LABEL, Criterion, cross_entropy


def batch(
    classes: int = 5, height: int = 6, width: int = 8, *, ignored: float = 0.3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, height, width, generator=generator)
    labels = torch.randint(classes, (2, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE_LABEL
    return logits, labels


def criterion(name: str) -> Criterion:
    options: dict[str, dict[str, object]] = {
        "ohem": {"min_kept": 10},
        "class-balanced": {"class_counts": [50, 20, 20, 9, 1]},
    }
    return LOSSES[name](**options.get(name, {}))


pixels = st.lists(
    st.tuples(st.floats(0, 20, width=32), st.booleans()),  # loss, labelled
    min_size=1,
    max_size=60,
)


@given(pixels, st.floats(0.01, 1), st.integers(0, 80))
def test_ohem_keeps_the_minimum_and_everything_harder_than_the_threshold(
    pixels: list[tuple[float, bool]], threshold: float, min_kept: int
) -> None:
    losses = torch.tensor([loss for loss, _ in pixels])
    labelled = torch.tensor([is_labelled for _, is_labelled in pixels])

    kept = hard_pixels(losses, labelled, threshold, min_kept)

    hard = labelled & (losses > -math.log(threshold))
    assert not (kept & ~labelled).any()
    assert kept[hard].all()
    assert kept.sum() == max(int(hard.sum()), min(min_kept, int(labelled.sum())))
    dropped = labelled & ~kept
    if kept.any() and dropped.any():
        assert losses[kept].min() >= losses[dropped].max()


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 1), st.integers(0, 120))
def test_ohem_is_the_mean_over_the_pixels_that_a_full_sort_would_keep(
    seed: int, threshold: float, min_kept: int
) -> None:
    logits, labels = batch(seed=seed)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none")
    losses = losses[labels != IGNORE_LABEL].sort(descending=True).values
    count = max(int((losses > -math.log(threshold)).sum()), min(min_kept, len(losses)))

    found = LOSSES["ohem"](threshold=threshold, min_kept=min_kept)(logits, labels)

    expected = losses[:count].mean() if count else losses.new_zeros(())
    torch.testing.assert_close(found, expected)


def test_only_the_kept_pixels_get_a_gradient() -> None:
    logits, labels = batch(ignored=0.3)
    logits.requires_grad_()
    LOSSES["ohem"](threshold=0.01, min_kept=7)(logits, labels).backward()
    assert logits.grad is not None
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none")
    reached = logits.grad.abs().sum(dim=1) > 0
    assert torch.equal(reached, hard_pixels(losses, labels != IGNORE_LABEL, 0.01, 7))


def test_ohem_with_more_pixels_to_keep_than_there_are_is_plain_cross_entropy() -> None:
    logits, labels = batch()
    torch.testing.assert_close(LOSSES["ohem"]()(logits, labels), cross_entropy(logits, labels))


def test_equal_class_counts_give_plain_cross_entropy() -> None:
    logits, labels = batch(classes=3)
    balanced = LOSSES["class-balanced"](class_counts=[4, 4, 4])
    torch.testing.assert_close(balanced(logits, labels), cross_entropy(logits, labels))


def test_class_balanced_agrees_with_weighted_cross_entropy() -> None:
    logits, labels = batch()
    counts = [50, 20, 20, 9, 1]
    weights = 1 / torch.log(1.02 + torch.tensor(counts) / 100)
    expected = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE_LABEL)
    torch.testing.assert_close(LOSSES["class-balanced"](class_counts=counts)(logits, labels), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_gives_zero_and_a_zero_gradient(name: str) -> None:
    logits, labels = batch(ignored=1.1)
    logits.requires_grad_()
    loss = criterion(name)(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_predicted_at_ignored_pixels_does_not_matter(name: str) -> None:
    logits, labels = batch()
    elsewhere = logits + 30 * torch.randn_like(logits) * (labels == IGNORE_LABEL)[:, None]
    assert criterion(name)(logits, labels) == criterion(name)(elsewhere, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_scored_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, labels = batch()
    half = (20 * logits).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        loss = criterion(name)(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, criterion(name)(half.float(), labels))


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("ohem", {"threshold": 0}, "threshold is 0"),
        ("ohem", {"threshold": 1.5}, "threshold is 1.5"),
        ("ohem", {"min_kept": -1}, "min_kept is -1"),
        ("class-balanced", {"class_counts": [0, 0]}, r"class_counts are \[0, 0\]"),
        ("class-balanced", {"class_counts": [3, -1]}, r"class_counts are \[3, -1\]"),
    ],
)
def test_an_impossible_option_is_named(name: str, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LOSSES[name](**options)


def test_class_counts_of_another_data_set_are_refused() -> None:
    with pytest.raises(ValueError, match="class_counts has 2 entries"):
        LOSSES["class-balanced"](class_counts=[1, 2])(*batch(classes=5))
