"""What every backbone is, and where its ImageNet weights come from."""

from __future__ import annotations

from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor, nn


class Backbone(nn.Module):
    """A trunk and what its feature levels look like."""

    channels: list[int]
    """Channels of each level, shallow to deep."""
    strides: list[int]
    """Input pixels per feature pixel of each level."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to features (N, channels[i], ~H / strides[i], ~W / strides[i])."""
        raise NotImplementedError


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a local weight file, by name.

    Raises:
        FileNotFoundError: there is no file at the path.
        ValueError: it cannot be read as weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"backbone weights: no file {path!r}")
    try:
        tensors: dict[str, Tensor] = load_state_dict(path)
    except Exception as error:  # what a broken file raises depends on how it is broken
        raise ValueError(f"backbone weights: {path!r} cannot be read as weights") from error
    return tensors


def no_imagenet_weights(name: str) -> ValueError:
    """What to raise when nobody has published ImageNet weights of ``name``."""
    return ValueError(f"there are no ImageNet weights of {name!r}; set 'pretrained' to false")


def unreachable_hub(name: str, error: Exception) -> ConnectionError:
    """What to raise when the ImageNet weights of ``name`` could not be fetched."""
    return ConnectionError(
        f"ImageNet weights of {name!r} could not be fetched from the model hub "
        f"({type(error).__name__}); download the file elsewhere and give its path as "
        "'pretrained', or set it to false"
    )
