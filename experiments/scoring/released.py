"""Reading a checkpoint file that somebody else wrote, without running anything that it says."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from experiments.running.errors import StageError

STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model")
"""What training programs keep the weights under, beside the optimizer's state and whatever else they note."""
EMA_KEYS = ("ema", "ema_state_dict", "ema_model", "model_ema", "state_dict_ema")
"""What they keep a moving average of the weights under."""
_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What parallel training, compilation and some training programs put before every name."""
_EXPECTED = "expected a .pth, .pt or .pkl file of tensors or arrays, or a .safetensors file"


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The weights in a checkpoint file, by name, on the CPU.

    Files of PyTorch (either of its formats), of pickled arrays (detectron2's model zoo) and of safetensors
    are told apart by their content. Of pickles only tensors, arrays, numbers, strings and plain containers
    are made; a file that names any other class or function is refused before it is called.

    The weights are looked for under ``STATE_KEYS``, or at the top of the file. What stands before every name,
    such as ``module.``, is taken off.

    Raises:
        StageError: there is no such file, it is no checkpoint, names code, or has no weights but a moving
            average of them; one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise StageError(f"no file {str(path)!r}; {_EXPECTED}")
    try:
        content = _content(path)
    except _NamesCodeError as error:
        raise StageError(
            f"{str(path)!r} names {error}, which is neither a tensor nor an array nor a plain container, and "
            "was not run; give a file of the weights alone, as torch.save(model.state_dict(), ...) writes it"
        ) from None
    except Exception as error:  # what a broken file raises depends on how it is broken
        raise StageError(
            f"{str(path)!r} cannot be read as a checkpoint ({type(error).__name__}); {_EXPECTED}"
        ) from error
    state = _unwrapped(_state(content, path))
    if all(name.startswith(("ema.", "ema_")) for name in state):
        raise _only_averages(path, f"under names such as {min(state)!r}")
    return {name: _tensor(value, name, path) for name, value in state.items()}


def _content(path: Path) -> Any:
    """What a file holds, whichever kind of file it is."""
    with path.open("rb") as file:
        start = file.read(16)
        if zipfile.is_zipfile(path) or start.startswith(_LEGACY_START):
            return _torch_content(path)
        if start[:1] == b"\x80":  # a pickle of protocol 2 or younger
            file.seek(0)
            return _PlainUnpickler(file).load()
    return safetensors.torch.load_file(path)


_LEGACY_START = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
"""How a file of ``torch.save`` before PyTorch 1.6 begins."""


def _torch_content(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(made, name) for name, made in _NUMPY.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise _NamesCodeError(named[1]) from None
        raise


class _NamesCodeError(Exception):
    """A pickle names a class or a function that reading weights does not need; the message is its name."""


def _latin1(text: str, encoding: str) -> bytes:
    """What ``codecs.encode`` is used for in pickles that hold bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_REBUILD: dict[str, Any] = {
    "multiarray._reconstruct": np.zeros(1).__reduce__()[0],
    "multiarray.scalar": np.float64(0).__reduce__()[0],
    "numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}
_NUMPY: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.dtypes.{name}": getattr(np.dtypes, name) for name in np.dtypes.__all__},
    **{f"numpy.core.{name}": made for name, made in _REBUILD.items()},  # before numpy 2
    **{f"numpy._core.{name}": made for name, made in _REBUILD.items()},
}
"""What numpy's arrays and numbers are pickled with, by the name in the pickle."""

_PLAIN: dict[str, Any] = {
    **_NUMPY,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    """Makes arrays and plain containers, and nothing else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="latin1")  # arrays of Python 2 are strings of bytes

    def find_class(self, module: str, name: str) -> Any:
        """Raises ``_NamesCodeError`` for all but what numpy's arrays are made of."""
        if (found := _PLAIN.get(f"{module}.{name}")) is None:
            raise _NamesCodeError(f"{module}.{name}")
        return found


def _state(content: Any, path: Path) -> Mapping[str, Any]:
    """The part of a file's content that is weights by name."""
    if isinstance(content, Mapping) and content:
        for key in STATE_KEYS:
            if isinstance(content.get(key), Mapping):
                return _state(content[key], path)
        if all(isinstance(name, str) and _is_array(value) for name, value in content.items()):
            return content
        averages = [key for key in EMA_KEYS if key in content]
        if averages:
            raise _only_averages(path, f"under {averages[0]!r}")
    keys = sorted(map(str, content)) if isinstance(content, Mapping) else []
    found = ", ".join(map(repr, keys[:4])) if keys else f"a {type(content).__name__}"
    raise StageError(
        f"{str(path)!r} has no weights that can be found: it holds {found}{' and more' * (len(keys) > 4)}; "
        f"expected tensors by name, alone or under one of {', '.join(map(repr, STATE_KEYS))}"
    )


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.generic)


def _only_averages(path: Path, where: str) -> StageError:
    return StageError(
        f"{str(path)!r} holds only a moving average of the weights, {where}; expected the weights "
        f"themselves under one of {', '.join(map(repr, STATE_KEYS))} (rename the key to score the average)"
    )


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what stands before every name."""
    names = dict(state)
    while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in names)), None):
        names = {name.removeprefix(wrapper): value for name, value in names.items()}
    return names


def _tensor(value: Any, name: str, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    try:
        return torch.tensor(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:
        raise StageError(
            f"{str(path)!r}: {name!r} is an array of {array.dtype}, expected one of numbers"
        ) from error
