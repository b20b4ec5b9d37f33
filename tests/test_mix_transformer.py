"""Mix Transformer under SeMask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbones.mix_transformer import MixTransformer
from models.semask import SeMaskSegmenter

transformers = pytest.importorskip("transformers")


def images(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def b0() -> Any:
    """SegFormer's own encoder of the smallest variant."""
    torch.manual_seed(0)
    config = transformers.SegformerConfig(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2])
    return transformers.SegformerModel(config).eval()


@pytest.fixture(scope="module")
def weights(b0: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights in a file, in the hub's names."""
    folder = tmp_path_factory.mktemp("mit")
    b0.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("variant", "millions"),
    [
        ("mit_b0", 3.4),
        ("mit_b1", 13.1),
        ("mit_b2", 24.2),
        ("mit_b3", 44.0),
        ("mit_b4", 60.8),
        ("mit_b5", 81.4),
    ],
)
def test_encoders_have_the_sizes_that_segformers_paper_states(variant: str, millions: float) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in MixTransformer(variant).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.025)


def test_without_semantic_layers_the_features_are_segformers(b0: Any, weights: Path) -> None:
    model = SeMaskSegmenter(19, backbone="mit_b0", pretrained=str(weights), semantic_stages=[]).eval()
    features, priors = model.encoder(images())
    expected = b0(images(), output_hidden_states=True).hidden_states
    assert priors == {}
    for x, y in zip(features, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_a_new_semantic_layer_leaves_the_features_almost_as_they_were(weights: Path) -> None:
    plain, semask = (
        SeMaskSegmenter(19, backbone="mit_b0", pretrained=str(weights), semantic_stages=stages).eval()
        for stages in ([], [1, 2, 3, 4])
    )
    for x, y in zip(semask.encoder(images())[0], plain.encoder(images())[0], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0.05 * y.abs().max().item())


@pytest.mark.parametrize("size", [(64, 96), (37, 51), (1, 1)])
def test_scores_have_the_images_own_size(size: tuple[int, int]) -> None:
    model = SeMaskSegmenter(5, backbone="mit_b0").eval()
    prediction = model(images(*size))
    assert prediction.logits.shape == (1, 5, *size)
    assert prediction.logits.isfinite().all()
    assert len(prediction.maps) == 5


def test_semantic_attention_is_within_windows_of_7() -> None:
    with torch.device("meta"):
        model = SeMaskSegmenter(150, backbone="mit_b0")
    windows: list[Any] = [layer.window for layer in model.encoder.semantic_layers.values()]
    assert windows == [7, 7, 7, 7]


def test_a_file_without_one_of_its_weights_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"encoder.layer_norm.0.weight": torch.ones(32)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"backbone weights '.*weights\.pth': nothing in it for") as error:
        MixTransformer("mit_b0", pretrained=str(tmp_path / "weights.pth"))
    assert "\n" not in str(error.value)


def test_a_file_that_does_not_exist_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere\.pth'"):
        MixTransformer("mit_b0", pretrained="nowhere.pth")


def test_a_hub_that_cannot_be_reached_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(transformers.SegformerModel, "from_pretrained", unreachable)
    with pytest.raises(ConnectionError, match="'mit_b0' could not be fetched") as error:
        MixTransformer("mit_b0", pretrained=True)
    assert "\n" not in str(error.value)
