"""What a recipe's losses promise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from experiments.training.losses import LOSSES, hard_pixels
from experiments.training.lovasz import lovasz_softmax
from models.segmenter import IGNORE_LABEL, Criterion, LabelCounts, cross_entropy


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
        "hardest": {"kept_per_image": 10},
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


def test_cross_entropy_over_all_pixels_counts_ignored_ones_as_zero() -> None:
    logits, labels = batch(ignored=0.5)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none")
    torch.testing.assert_close(LOSSES["cross-entropy"](over="all")(logits, labels), losses.mean())


def test_hardest_is_the_sum_over_the_hardest_pixels_of_each_group_over_all_pixels() -> None:
    logits, labels = batch(ignored=0.2)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none").flatten(1)
    by_image = losses.sort(dim=1, descending=True).values[:, :7].sum() / losses.numel()
    torch.testing.assert_close(LOSSES["hardest"](kept_per_image=7, group=1)(logits, labels), by_image)
    together = losses.flatten().sort(descending=True).values[:14].sum() / losses.numel()
    torch.testing.assert_close(LOSSES["hardest"](kept_per_image=7)(logits, labels), together)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_whole_groups_add_up_to_the_batch(name: str) -> None:
    parts = [batch(ignored=0.1, seed=1), batch(ignored=0.8, seed=2)]
    logits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    options: dict[str, dict[str, object]] = {
        "ohem": {"min_kept": 10, "group": 2},
        "hardest": {"kept_per_image": 10, "group": 2},
        "lovasz": {"group": 2},
        "class-balanced": {"class_counts": [50, 20, 20, 9, 1]},
    }
    loss = LOSSES[name](**options.get(name, {}))
    whole = LabelCounts.of(labels, 5)
    added = torch.stack([loss(*part, whole) for part in parts]).sum()
    torch.testing.assert_close(added, loss(logits, labels))


class TestLovasz:
    """Against the definition: the Lovasz extension of the Jaccard loss (Berman et al., CVPR 2018)."""

    @staticmethod
    def jaccard_loss(true: list[bool], mistaken: set[int]) -> float:
        """One minus the intersection over union of a class when these pixels are mistaken."""
        of_class = {pixel for pixel, is_true in enumerate(true) if is_true}
        union = of_class | mistaken
        return 1 - len(of_class - mistaken) / len(union) if union else 0.0

    def extension(self, errors: list[float], true: list[bool]) -> float:
        """By levels: the integral over t in [0, 1] of the loss where all errors above t are mistakes."""
        levels = sorted({0.0, *errors})
        total = 0.0
        for low, high in pairwise(levels):
            mistaken = {pixel for pixel, error in enumerate(errors) if error >= high}
            total += (high - low) * self.jaccard_loss(true, mistaken)
        return total

    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0, 0.9))
    def test_it_is_the_extension_of_the_jaccard_loss_averaged_over_the_classes_that_occur(
        self, seed: int, classes: int, ignored: float
    ) -> None:
        logits, labels = batch(classes, 2, 3, ignored=ignored, seed=seed)
        probabilities = logits.double().softmax(dim=1).movedim(1, -1)
        kept = labels != IGNORE_LABEL
        found = lovasz_softmax(logits, labels).item()
        expected = []
        for k in labels[kept].unique().tolist():
            true = (labels[kept] == k).tolist()
            errors = [abs(t - p) for t, p in zip(true, probabilities[kept][:, k].tolist(), strict=True)]
            expected.append(self.extension(errors, true))
        assert found == pytest.approx(sum(expected) / max(1, len(expected)), abs=1e-5)

    def test_a_prediction_without_doubt_costs_one_minus_the_mean_iou(self) -> None:
        labels = torch.tensor([[[0, 0, 1, 1]]])
        logits = 200.0 * F.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 2).movedim(-1, 1)
        assert lovasz_softmax(logits, labels).item() == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)

    @settings(deadline=None)
    @given(st.tuples(st.booleans(), st.booleans()), st.floats(0, 1), st.floats(0, 1))
    def test_on_two_pixels_it_is_the_convex_closure(
        self, true: tuple[bool, bool], first: float, second: float
    ) -> None:
        """The greatest convex function below the loss at the corners: the cheapest mixture of them."""
        corner = {
            (a, b): self.jaccard_loss(list(true), {i for i, wrong in enumerate((a, b)) if wrong})
            for a in (0, 1)
            for b in (0, 1)
        }
        # Mixtures of the four corners with these means differ in the weight of (1, 1) alone.
        weights = (max(0.0, first + second - 1), min(first, second))
        closure = min(
            w * corner[1, 1]
            + (first - w) * corner[1, 0]
            + (second - w) * corner[0, 1]
            + (1 - first - second + w) * corner[0, 0]
            for w in weights
        )
        assert self.extension([first, second], list(true)) == pytest.approx(closure, abs=1e-9)

    def test_its_gradient_lowers_it(self) -> None:
        logits, labels = batch()
        logits.requires_grad_()
        before = lovasz_softmax(logits, labels)
        before.backward()
        assert logits.grad is not None
        assert lovasz_softmax(logits.detach() - 10 * logits.grad, labels) < before


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
        ("hardest", {"kept_per_image": 0}, "kept_per_image is 0"),
        ("lovasz", {"weight": -1.0}, "weight is -1.0"),
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
