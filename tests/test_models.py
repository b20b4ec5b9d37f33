"""What every model promises, whichever it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import models

SMALL: dict[str, dict[str, Any]] = {
    "spgnet": {"backbone": "resnet18"},
    "gun": {"backbone": "drn_d_14_narrow"},
    "semask": {"backbone": "swin_nano"},
    "alignseg": {"backbone": "resnet18s"},
}


def test_every_model_is_here() -> None:
    assert sorted(SMALL) == models.names()


@pytest.mark.parametrize("name", SMALL)
def test_maps_for_figures_hold_no_graph(name: str) -> None:
    model = models.create(name, 3, **SMALL[name]).train()
    maps = model(torch.randn(2, 3, 64, 64)).maps
    assert maps
    assert not any(values.requires_grad for values in maps.values())
