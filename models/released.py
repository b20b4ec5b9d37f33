"""What a paper's authors released, and what it is here: their names, and ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

NAMES_IN_NO_MODEL = frozenset({"pixel_mean", "pixel_std"})
"""Tensors that detectron2 keeps with a model and a recipe has here: how images are normalised."""

_MAY_BE_MISSING = ("num_batches_tracked", "criterion.empty_weight")
"""Ends of names that not every file has: counts are younger than PyTorch 0.4, and a loss's weights are left
out of files for inference. No score depends on either."""


def unchanged(name: str, tensor: Tensor) -> Tensor:  # noqa: ARG001
    """A tensor that means the same to the authors' code as to ours."""
    return tensor


@dataclass(frozen=True)
class ReleasedFormat:
    """How a model reads the checkpoints of its authors."""

    names: Mapping[str, str | Sequence[str]]
    """Regular expressions for the beginnings of the authors' names, and what stands for them in ours, with
    the groups in braces: ``{0}`` as it is, ``{next_0}`` one more, ``{from_3_0}`` counted down from three.
    Several names are one tensor of theirs, cut evenly along its first dimension; no name is a tensor that
    follows from the configuration."""
    value: Callable[[str, Tensor], Tensor] = unchanged
    """From one of our names and its tensor in the checkpoint to what the model takes."""
    class_options: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Regular expressions for our tensors with a dimension of classes: the option that sets their number, and
    how many channels there are beyond it."""

    def ours(self, theirs: str) -> tuple[str, ...] | None:
        """Our names for one of theirs, ``None`` where it has no counterpart."""
        if theirs in NAMES_IN_NO_MODEL:
            return ()
        for pattern, ours in self.names.items():
            if match := re.match(f"(?:{pattern})" + r"(?=\.|$)", theirs):
                numbers = [int(group) for group in match.groups() if group.isdigit()]
                known = {f"next_{i}": number + 1 for i, number in enumerate(numbers)}
                known |= {f"from_3_{i}": 3 - number for i, number in enumerate(numbers)}
                names = (ours,) if isinstance(ours, str) else ours
                return tuple(n.format(*match.groups(), **known) + theirs[match.end() :] for n in names)
        return None

    def translate(
        self, checkpoint: Mapping[str, Tensor], own: Mapping[str, Tensor], model: str
    ) -> dict[str, Tensor]:
        """A state for the model.

        Where a file has one tensor of the model under two names, the model has both names too, and takes
        what PyTorch would take in the authors' code: what it loads last.

        Args:
            checkpoint: the authors' tensors, in their names.
            own: the model's present state.
            model: what messages call it.

        Raises:
            ValueError: a tensor is missing, is left over or has another shape; the message names it.
        """
        sources: dict[str, tuple[str, int]] = {}
        pieces: dict[str, tuple[str, ...]] = {}
        for theirs, tensor in checkpoint.items():
            if not isinstance(tensor, Tensor):
                hint = "; give what stands under 'state_dict'" if "state_dict" in checkpoint else ""
                raise ValueError(
                    f"released checkpoint: {theirs!r} holds a {type(tensor).__name__}, "
                    f"expected a tensor{hint}"
                )
            names = self.ours(theirs)
            if names is None or not set(names) <= own.keys():
                raise ValueError(f"released checkpoint: {theirs!r} has no counterpart in this {model}")
            pieces[theirs] = names
            sources |= {name: (theirs, i) for i, name in enumerate(names)}
        for name in own:
            if name not in sources and not name.endswith(_MAY_BE_MISSING):
                raise ValueError(f"released checkpoint: nothing in it for {name!r} of this {model}")
        self._check_shapes(checkpoint, own, pieces)
        state = dict(own)
        for name, (theirs, i) in sources.items():
            tensor = checkpoint[theirs]
            count = len(pieces[theirs])
            state[name] = self.value(name, tensor.chunk(count)[i] if count > 1 else tensor)
        return state

    def _check_shapes(
        self,
        checkpoint: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        pieces: Mapping[str, Sequence[str]],
    ) -> None:
        wrong = []
        for theirs, names in pieces.items():
            if names:
                found, expected = tuple(checkpoint[theirs].shape), tuple(own[names[0]].shape)
                if len(names) > 1:
                    expected = (len(names) * expected[0], *expected[1:])
                if found != expected:
                    wrong.append((theirs, names[0], found, expected))
        if not wrong:
            return
        theirs, _, found, expected = wrong[0]
        message = f"released checkpoint: {theirs!r} has shape {found}, the model needs {expected}"
        if options := self._options_that_fit(wrong):
            message += f"; create the model with {' and '.join(options)}"
        raise ValueError(message)

    def _options_that_fit(
        self, wrong: Sequence[tuple[str, str, tuple[int, ...], tuple[int, ...]]]
    ) -> list[str]:
        """The numbers of classes with which the checkpoint's shapes would be the model's, or nothing."""
        options: dict[str, tuple[int, int]] = {}
        for _, name, found, expected in wrong:
            for pattern, (option, beyond) in self.class_options.items():
                if re.search(pattern, name) and found[1:] == expected[1:] and found != expected:
                    options[option] = (found[0] - beyond, expected[0] - beyond)
                    break
            else:
                return []
        if len(set(options.values())) == 1:
            # The other options follow from the first.
            options = dict(sorted(options.items(), key=lambda item: item[0] != "num_classes")[:1])
        return [f"{option}={found} instead of {expected}" for option, (found, expected) in options.items()]
