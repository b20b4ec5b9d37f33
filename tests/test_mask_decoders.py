"""SeMask with the decoders that classify masks: MaskFormer, Mask2Former, FaPN, MSFaPN."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from models.decoders.mask_classification import MaskDecoder, labelled_masks, semantic_scores
from models.segmenter import IGNORE_LABEL, Prediction
from models.semask import SeMaskSegmenter

pytest.importorskip("transformers")

DECODERS = ["maskformer", "mask2former", "fapn", "msfapn"]


def semask(decoder: str, num_classes: int = 5, **options: Any) -> SeMaskSegmenter:
    torch.manual_seed(0)
    options = {"backbone": "swin_nano", "drop_path": 0.0, **options}
    return SeMaskSegmenter(num_classes, decoder=decoder, **options)  # type: ignore[arg-type]


def images(height: int = 64, width: int = 96, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def blocks(height: int = 64, width: int = 96) -> Tensor:
    """Labels 0, 1, 2 in vertical stripes, the last quarter ignored."""
    labels = torch.arange(width) * 4 // width
    labels[labels == 3] = IGNORE_LABEL
    return labels.expand(1, height, width)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize(
    ("decoder", "millions"), [("maskformer", 219), ("mask2former", 222), ("fapn", 227), ("msfapn", 224)]
)
def test_parameters_on_semask_l_are_the_published(decoder: str, millions: float) -> None:
    with torch.device("meta"):
        model = semask(decoder, 150, backbone="swin_large_patch4_window12_384.ms_in22k")
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(64, 96), (33, 50)])
def test_inference_gives_class_scores_at_the_images_own_size(decoder: str, size: tuple[int, int]) -> None:
    prediction = semask(decoder).eval()(images(*size, batch=2))
    assert prediction.logits.shape == (2, 5, *size)
    assert (prediction.logits >= 0).all()
    assert prediction.auxiliary == {}
    assert len(prediction.maps) == 5


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_supervises_every_layer_and_reaches_every_parameter(decoder: str) -> None:
    model = semask(decoder, attention="window").train()
    for name, parameter in model.named_parameters():
        if name.endswith("lambda_"):
            torch.nn.init.ones_(parameter)
    prediction = model(images())
    predictions = 2 if decoder == "maskformer" else 4  # of the stand-in's layers, and one before them
    assert prediction.auxiliary["masks"].shape == (1, predictions, 32, 16, 24)
    assert prediction.auxiliary["classes"].shape == (1, predictions, 32, 6)
    terms = model.loss(prediction, blocks())
    assert set(terms) == {"cross_entropy", "mask", "dice", "priors"}
    total(terms).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_few_steps_lower_the_loss(decoder: str) -> None:
    model = semask(decoder, num_classes=3).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = total(model.loss(model(images()), blocks()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("decoder", DECODERS)
def test_labels_that_are_all_ignored_give_a_finite_loss(decoder: str) -> None:
    model = semask(decoder).train()
    terms = model.loss(model(images()), torch.full((1, 64, 96), IGNORE_LABEL))
    assert total(terms).isfinite()
    assert terms["mask"] == 0


def test_no_supervision_leaves_no_term_for_the_priors() -> None:
    model = semask("maskformer", prior_weight=0.0).train()
    assert set(model.loss(model(images()), blocks())) == {"cross_entropy", "mask", "dice"}


# Sets of masks


def prediction_of(masks: Tensor, classes: Tensor) -> Prediction:
    return Prediction(
        masks.new_zeros(()), auxiliary={"masks": masks[None, None], "classes": classes[None, None]}
    )


def right_answer(queries: int = 6) -> tuple[Tensor, Tensor]:
    """Masks (Q, H, W) and classes (Q, 6) that say what ``blocks`` does, with no doubt."""
    masks, classes = labelled_masks(blocks()[0])
    scores = torch.full((queries, 6), -20.0)
    scores[torch.arange(queries), [*classes.tolist(), *[5] * (queries - len(classes))]] = 20.0
    return torch.cat((40 * masks - 20, torch.full((queries - len(classes), 64, 96), -20.0))), scores


@pytest.mark.parametrize("name", ["maskformer", "mask2former"])
def test_the_right_masks_cost_nothing_in_any_order(name: str) -> None:
    decoder = semask(name).decoder
    assert isinstance(decoder, MaskDecoder)
    masks, classes = right_answer()
    order = torch.randperm(len(masks))
    terms = decoder.loss(prediction_of(masks[order], classes[order]), blocks())
    # Mask2Former samples along the masks' edges, where resampled labels are not quite 0 or 1.
    assert total(terms) < 2
    swapped = decoder.loss(prediction_of(masks, classes[[1, 0, *range(2, 6)]]), blocks())
    assert total(swapped) > 10


def test_mask2former_samples_no_more_points_than_a_mask_has_pixels() -> None:
    decoder: Any = semask("mask2former").decoder
    decoder.loss(prediction_of(*right_answer()), blocks())
    assert decoder.criterion.num_points == decoder.criterion.matcher.num_points == 64 * 96
    masks, classes = right_answer()
    large = torch.nn.functional.interpolate(masks[None], (256, 256))[0]
    decoder.loss(prediction_of(large, classes), blocks())
    assert decoder.criterion.num_points == 12544


def test_labels_become_one_mask_for_each_class_that_occurs() -> None:
    labels = torch.tensor([[3, 3, IGNORE_LABEL], [1, 3, 1]])
    masks, classes = labelled_masks(labels)
    assert classes.tolist() == [1, 3]
    assert masks.tolist() == [[[0, 0, 0], [1, 0, 1]], [[1, 1, 0], [0, 1, 0]]]


def test_scores_are_class_times_mask_probability_summed_over_queries() -> None:
    masks, classes = torch.randn(2, 7, 4, 3), torch.randn(2, 7, 6)
    expected = torch.zeros(2, 5, 4, 3)
    for query in range(7):
        probability = classes[:, query].softmax(dim=-1)
        for k in range(5):
            expected[:, k] += probability[:, k, None, None] * masks[:, query].sigmoid()
    torch.testing.assert_close(semantic_scores(masks, classes, (4, 3)), expected)


# The parts of transformers


def test_deformable_attention_starts_on_rays_of_fixed_offsets() -> None:
    decoder: Any = semask("mask2former").decoder
    for layer in decoder.pixel_decoder.encoder.layers:
        offsets = layer.self_attn.sampling_offsets
        assert not offsets.weight.any()
        steps = offsets.bias.detach().view(8, 3, 4, 2).abs().amax(dim=-1)  # heads, levels, points
        torch.testing.assert_close(steps, torch.arange(1.0, 5.0).expand(8, 3, 4))


def test_semantic_fpn_does_not_pay_for_importing_transformers() -> None:
    code = "import sys, models; models.create('semask', 5); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_it_trains_under_autocast(decoder: str) -> None:
    model = semask(decoder).train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(model(images()), blocks())
    total(terms).backward()
    assert total(terms).isfinite()
