"""SqueezeNet 1.1 (Iandola et al., 2016) as a feature extractor; torchvision's, which timm has not.

``squeezenet1_1_narrow`` is this suite's own, for runs on a CPU: a quarter of the channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights
from torchvision.models.squeezenet import Fire

from models.backbones.base import Backbone, no_imagenet_weights, read_weights, unreachable_hub

_DIVISORS = {"squeezenet1_1": 1, "squeezenet1_1_narrow": 4}
"""Of all channels."""

NAMES = tuple(_DIVISORS)
"""Names that ``SqueezeNet`` takes."""

_STAGES = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256), (64, 256)))
"""Squeezed and expanded channels of the Fire modules; a pooling stands before each stage."""


class SqueezeNet(Backbone):
    """Features at strides 2, 4, 8 and 16, with 64, 128, 256 and 512 channels.

    The first convolution is padded, which torchvision's is not: with sides that are multiples of 16 every
    feature has exactly half the size of the one before.

    Args:
        name: one of ``NAMES``.
        pretrained: ImageNet weights from torchvision's site (``True``) or from a local file in their names
            (its path). Its classifier is left out.
        activation: makes the rectifiers; the weights were trained with ReLU.

    Raises:
        ValueError: no published weights, or a file that does not fit.
        FileNotFoundError: no weight file at the path.
        ConnectionError: torchvision's site cannot be reached.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        activation: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True),
    ):
        super().__init__()
        divisor = _DIVISORS[name]
        width = 64 // divisor
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1), activation()]
        self._ends = [1]
        self.channels, self.strides = [width], [2, 4, 8, 16]
        for stage in _STAGES:
            layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for squeezed, expanded in stage:
                fire = Fire(width, squeezed // divisor, expanded // divisor, expanded // divisor)
                fire.squeeze_activation = activation()
                fire.expand1x1_activation, fire.expand3x3_activation = activation(), activation()
                layers.append(fire)
                width = 2 * expanded // divisor
            self._ends.append(len(layers) - 1)
            self.channels.append(width)
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if pretrained:
            self._load_imagenet(name, pretrained)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to the features of each level, shallow to deep."""
        features = []
        for number, layer in enumerate(self.features):
            images = layer(images)
            if number in self._ends:
                features.append(images)
        return features

    def _load_imagenet(self, name: str, source: bool | str) -> None:
        if isinstance(source, str):
            tensors = read_weights(source)
        elif name != "squeezenet1_1":
            raise no_imagenet_weights(name)
        else:
            try:
                url = SqueezeNet1_1_Weights.IMAGENET1K_V1.url
                tensors = torch.hub.load_state_dict_from_url(
                    url, map_location="cpu", check_hash=True, weights_only=True
                )
            except (OSError, RuntimeError) as error:
                raise unreachable_hub(name, error) from error
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("classifier.")}
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            problem = " ".join(str(error).splitlines()[1].split())
            raise ValueError(f"ImageNet weights of {name!r} do not fit: {problem}") from error
