from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import models
from models.parts.folding import fold_norms


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
