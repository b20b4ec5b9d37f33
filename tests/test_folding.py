from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.parts.folding import PackedLinear, fold_norms, pack_weights


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spgnet", {"backbone": "resnet18"}),
        ("gun", {"backbone": "drn_d_22"}),
        ("gun", {"backbone": "drn_d_22", "norm_statistics": "together", "guidance": "large-rf"}),
        ("semask", {"backbone": "swin_nano"}),
        ("alignseg", {"backbone": "resnet18s"}),
        ("alignseg", {"backbone": "resnet50s", "context": "aspp", "channels": 16}),
    ],
)
def test_folded_norms_leave_the_scores(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = models.create(name, 5, **options).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before = model(images).logits
        assert fold_norms(model) > 3
        after = model(images).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))


def test_a_network_in_training_is_not_folded() -> None:
    with pytest.raises(ValueError, match="training mode"):
        fold_norms(models.create("gun", 5))


def test_packed_weights_leave_the_scores_and_what_came_before_does_not_matter() -> None:
    torch.manual_seed(0)
    model = models.create("alignseg", 5, backbone="resnet18s").eval()
    packed = copy.deepcopy(model)
    assert pack_weights(packed) > 20
    small, wide, pair = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 48, 128), torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        first = packed(small).logits
        torch.testing.assert_close(first, model(small).logits, rtol=1e-5, atol=1e-6)
        for other in (wide, pair):
            torch.testing.assert_close(packed(other).logits, model(other).logits, rtol=1e-5, atol=1e-6)
            assert torch.equal(packed(small).logits, first)
        assert torch.equal(copy.deepcopy(packed)(small).logits, first)


@pytest.mark.parametrize("decoder", ["fpn", "mask2former"])
def test_packed_linear_layers_leave_a_transformer_s_scores(decoder: str) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = models.create("semask", 5, backbone="swin_nano", decoder=decoder).eval()
    packed = copy.deepcopy(model).for_inference()
    mlps = [module for name, module in packed.named_modules() if name.endswith(".mlp")]
    assert mlps
    assert not any(isinstance(module, nn.GELU) for mlp in mlps for module in mlp.modules())
    small, wide = torch.randn(1, 3, 64, 96), torch.randn(2, 3, 48, 128)
    with torch.inference_mode():
        first = packed(small).logits
        for images in (small, wide):
            torch.testing.assert_close(packed(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(packed(small).logits, first)
    packed(small).logits.sum().backward()  # in the plain way


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_in_words_keeps_its_convolution(padding: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding)).eval()
    images = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        before = network(images)
        pack_weights(network)
        assert torch.equal(network(images), before)


def test_a_packed_linear_layer_gives_its_own_gelu_in_any_precision() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 7)
    packed = PackedLinear(linear, gelu=True)
    for x in (torch.randn(3, 4, 5), torch.randn(5), torch.randn(0, 5)):
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), F.gelu(linear(x)), rtol=1e-5, atol=1e-6)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert packed(torch.randn(3, 5)).dtype == torch.bfloat16


def test_packed_weights_are_not_in_the_way_of_gradients_and_other_precisions() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    packed = nn.Sequential(convolution)
    assert pack_weights(packed) == 1
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    packed(images).sum().backward()
    assert images.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert packed(images).dtype == torch.bfloat16
    with torch.inference_mode():
        assert packed.double()(images.double()).dtype == torch.float64
