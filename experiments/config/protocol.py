"""How a trained network is scored: ``single_scale`` and ``multi_scale`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.types import Strict
from pydantic_core import PydanticCustomError

from experiments.config.strict import Count, Positive, Size, StrictModel

ShortSide = Annotated[tuple[Count, Count], Strict(False)]
"""Length that the shorter side is resized to, and the greatest one that the longer side may get by it."""


class Protocol(StrictModel):
    """Which inputs a network gets of one image, and how its scores become one prediction."""

    window: Size | None = None
    """Height and width of the sliding window; ``null`` shows the network the whole image."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the window's height by which neighbouring windows overlap at least, along both axes."""
    scales: Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)] = (1.0,)
    """Factors by which the image is resized, one after the other ..."""
    short_sides: Annotated[tuple[ShortSide, ...], Strict(False)] | None = None
    """... or lengths that its shorter side is resized to, each with the limit of the longer side."""
    flip: bool = False
    """Whether each resized image is shown mirrored as well."""
    average: Literal["scores", "softmax"] = "scores"
    """What is averaged over scales and flips, at the labels' size: scores as the network gives them (for mask
    decoders, class times mask probabilities), or their softmax. Overlapping windows average scores."""
    align_corners: bool = False
    """Whether the end points of images and scores stay end points when they are resized."""
    antialias: bool = False
    """Whether images are smoothed as they get smaller, as Pillow does it and OpenCV does not."""
    pad_to: Count = 1
    """The network's input is padded with zeros, at the right and at the bottom, to a multiple of this."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the network; scores are averaged in float32."""

    @model_validator(mode="after")
    def _effective(self) -> Protocol:
        if self.overlap and self.window is None:
            raise PydanticCustomError(
                "overlap", "has no effect without a window; give one, or take it out", {"key": "overlap"}
            )
        if self.short_sides is not None and self.scales != (1.0,):
            raise PydanticCustomError(
                "sizes", "scales and short_sides both say how images are resized; give one of them"
            )
        if self.short_sides is not None and not self.short_sides:
            raise PydanticCustomError("sizes", "is empty; expected at least one pair", {"key": "short_sides"})
        for short, longest in self.short_sides or ():
            if short > longest:
                raise PydanticCustomError(
                    "order",
                    "[{short}, {longest}] limits the longer side to less than the shorter one",
                    {"short": short, "longest": longest, "key": "short_sides"},
                )
        return self

    def input_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width that an image of this size is resized to, one for each scale."""
        if self.short_sides is None:
            factors = list(self.scales)
        else:
            short, long = min(height, width), max(height, width)
            factors = [min(to / short, limit / long) for to, limit in self.short_sides]
        # Halves go up, as the authors' code has it; Python's round() would take them to the even number.
        return [(max(1, int(height * f + 0.5)), max(1, int(width * f + 0.5))) for f in factors]

    @property
    def is_one_pass(self) -> bool:
        """Whether the network sees the whole image, once."""
        return self.window is None and not self.flip and len(self.short_sides or self.scales) == 1
