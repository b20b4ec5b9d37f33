"""Mask classification: a segmentation is a set of masks, each with a class.

What MaskFormer and Mask2Former share: how a set of masks becomes class scores, how labels become a set of
masks, and a loss that first finds which predicted mask answers for which labelled one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.segmenter import IGNORE_LABEL, LabelCounts, Prediction

PIXELS, QUERIES = r"sem_seg_head\.pixel_decoder\.", r"sem_seg_head\.predictor\."
"""Beginnings of the authors' parameter names, as regular expressions."""


class MaskSet(NamedTuple):
    """What the layers of a mask decoder predict, D times in all, the final prediction last."""

    masks: Tensor
    """(N, D, Q, H, W), logits of each query's mask."""
    classes: Tensor
    """(N, D, Q, K + 1), logits of each query's class; the last one is "no object"."""


class MaskDecoder(nn.Module):
    """From features to a set of masks, and the loss on it.

    ``criterion`` is a set loss of ``transformers``; ``weights`` names its terms and their weights.
    """

    criterion: Any
    weights: dict[str, float]
    no_object_weight: float
    """Of "no object" in the loss on the classes."""

    def predict(self, features: Sequence[Tensor]) -> MaskSet:
        """Features (N, C_i, ~H / 2^i, ~W / 2^i), shallow to deep, to masks at (H, W)."""
        raise NotImplementedError

    def released_names(self) -> dict[str, str | Sequence[str]]:
        """See ``ReleasedFormat.names``; ours are those of this module's tensors."""
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Prediction:
        """Features to class scores (N, K, *size) and, in training, the ``masks`` and ``classes`` of a
        ``MaskSet`` in ``auxiliary``."""
        masks, classes = self.predict(features)
        logits = semantic_scores(masks[:, -1], classes[:, -1], size)
        return Prediction(logits, {"masks": masks, "classes": classes} if self.training else {})

    def loss(
        self, prediction: Prediction, labels: Tensor, whole: LabelCounts | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms, each summed over all D predictions (deep supervision).

        Args:
            prediction: what ``forward`` returned in training.
            labels: (N, H, W) int64. Ignored pixels belong to no mask, as in the authors' repository.
            whole: of the batch of which these are a part, by whose masks the terms are divided. The authors
                divide the loss on the masks by the masks of all devices, and the one on the classes by the
                queries of one device; here both are over the whole batch, which does not depend on how it
                is cut, and is the same on one device.
        """
        masks, classes = (prediction.auxiliary[name].float().unbind(1) for name in ("masks", "classes"))
        targets = [labelled_masks(image) for image in labels]
        predictions = [
            {"masks_queries_logits": m, "class_queries_logits": c}
            for m, c in zip(masks, classes, strict=True)
        ]
        losses: dict[str, Tensor] = self.criterion(
            **predictions[-1],
            mask_labels=[masks for masks, _ in targets],
            class_labels=[classes for _, classes in targets],
            auxiliary_predictions=predictions[:-1],
        )
        terms = {}
        for name, weight in self.weights.items():
            over_layers = [loss for key, loss in losses.items() if key.startswith(f"loss_{name}")]
            terms[name] = weight * torch.stack(over_layers).sum()
        if whole is None:
            return terms
        # The criterion has divided by what the part holds.
        queries, num_classes = classes[0].shape[1], classes[0].shape[2] - 1
        part = LabelCounts.of(labels, num_classes)
        of_masks = part.masks.clamp(min=1) / whole.masks.clamp(min=1)
        of_classes = self._class_weight(part, queries) / self._class_weight(whole, queries)
        return {
            name: term * (of_classes if name == "cross_entropy" else of_masks) for name, term in terms.items()
        }

    def _class_weight(self, counts: LabelCounts, queries: int) -> Tensor:
        """Weights of all queries together in the loss on the classes: one of them answers for each mask."""
        return counts.masks + self.no_object_weight * (counts.images * queries - counts.masks)


def labelled_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (H, W) to one mask for each class that occurs, (T, H, W) of 0 and 1, and the classes (T,)."""
    classes = labels.unique()
    classes = classes[classes != IGNORE_LABEL]
    return (labels == classes[:, None, None]).float(), classes


def semantic_scores(masks: Tensor, classes: Tensor, size: Sequence[int]) -> Tensor:
    """Class scores of a set of masks: sum over the queries of class probability times mask probability.

    Args:
        masks: (N, Q, h, w), logits.
        classes: (N, Q, K + 1), logits, "no object" last.
        size: height and width of the result, to which the masks are upsampled first.

    Returns:
        (N, K, H, W), at least 0.
    """
    masks = F.interpolate(masks, tuple(size), mode="bilinear", align_corners=False).sigmoid()
    share = classes.softmax(dim=-1)[..., :-1]
    return torch.einsum("nqk,nqhw->nkhw", share, masks)


def split_attention(theirs: str, ours: str) -> dict[str, tuple[str, ...]]:
    """Names of an attention whose query, key and value maps are one tensor there and three here."""
    return {
        rf"{theirs}\.in_proj_{tensor}": tuple(f"{ours}.{part}_proj.{tensor}" for part in "qkv")
        for tensor in ("weight", "bias")
    }


def with_prefix(
    theirs: str, ours: str, names: Mapping[str, str | Sequence[str]]
) -> dict[str, str | Sequence[str]]:
    """Names inside a module, with the module's own before them."""
    return {
        theirs + inside: ours + found if isinstance(found, str) else [ours + name for name in found]
        for inside, found in names.items()
    }
