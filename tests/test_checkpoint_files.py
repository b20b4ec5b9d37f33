"""Checkpoint files that others wrote: what is found in them, and what is refused before it runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.running.errors import StageError
from experiments.scoring.released import read_checkpoint

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([1.5, -2.0])}


def is_the_state(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def trained() -> dict[str, Any]:
    """What a training program saves: the weights beside an optimizer's state and notes of its own."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "meta": {"epoch": 3, "mIoU": np.float64(0.42), "CLASSES": ("road", "car"), "seen": np.arange(3)},
    }


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model_state", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_beside_optimizer_and_notes(tmp_path: Path, key: str, zipped: bool) -> None:
    path = tmp_path / "trained.pth"
    torch.save(trained() | {key: OrderedDict(STATE)}, path, _use_new_zipfile_serialization=zipped)
    assert is_the_state(read_checkpoint(path))


@pytest.mark.parametrize("wrapper", ["", "module.", "module.module.", "_orig_mod.", "_orig_mod.module."])
def test_what_stands_before_every_name_is_taken_off(tmp_path: Path, wrapper: str) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({"model": {"state_dict": {wrapper + name: x for name, x in STATE.items()}}}, path)
    assert is_the_state(read_checkpoint(path))


def test_a_prefix_of_some_names_is_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    torch.save({"module.weight": torch.ones(1), "weight": torch.zeros(1)}, path)
    assert read_checkpoint(path).keys() == {"module.weight", "weight"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays_as_in_detectron2s_model_zoo_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "zoo.pkl"
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    assert is_the_state(read_checkpoint(path))


def test_arrays_of_another_byte_order_and_single_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "big.pkl"
    content = {"weight": np.arange(3, dtype=">f4"), "count": np.int64(7), "half": np.ones((), np.float16)}
    path.write_bytes(pickle.dumps(content))
    found = read_checkpoint(path)
    assert found["weight"].tolist() == [0, 1, 2]
    assert found["count"].dtype == torch.int64
    assert found["count"] == 7
    assert found["half"].dtype == torch.float16


def test_names_of_numpy_from_before_and_after_its_second_version_are_known(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    data = pickle.dumps({"head.bias": STATE["head.bias"].numpy()}, 2)
    new = b"numpy._core.multiarray\n"
    assert new in data
    path.write_bytes(data.replace(new, b"numpy.core.multiarray\n"))
    assert torch.equal(read_checkpoint(path)["head.bias"], STATE["head.bias"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in STATE.items()}, path)
    assert is_the_state(read_checkpoint(path))


class Code:
    """What a pickle can do to whoever loads it."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("how", ["pickle", "zipped", "before PyTorch 1.6"])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path: Path, how: str) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "it-ran"
    content = {"state_dict": STATE, "meta": Code(proof)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content | {"state_dict": {}}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zipped")
    with pytest.raises(StageError, match=r"names (posix|nt)\.mkdir, which is neither a tensor") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    "module_and_name", [b"builtins\neval", b"torch.storage\n_load_from_bytes", b"numpy\nload", b"os\nsystem"]
)
def test_functions_that_load_or_run_more_are_refused(tmp_path: Path, module_and_name: bytes) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x02c" + module_and_name + b"\nX\x01\x00\x00\x001\x85R.")
    with pytest.raises(StageError, match="and was not run"):
        read_checkpoint(path)


def without_end(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (lambda _: None, "no file '.*file.pth'; expected a .pth, .pt or .pkl file"),
        (lambda path: path.mkdir(), "no file"),
        (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
        (lambda path: path.write_text("a page that says: not found"), "cannot be read as a checkpoint"),
        (without_end, "cannot be read as a checkpoint"),
        (lambda path: torch.save([1, 2], path), "no weights that can be found: it holds a list"),
        (lambda path: torch.save({}, path), "it holds a dict"),
        (lambda path: torch.save({"state_dict": {}}, path), "no weights that can be found"),
        (lambda path: torch.save(trained(), path), "it holds 'meta', 'optimizer'; expected tensors by name"),
        (
            lambda path: torch.save({"epoch": 1, "model_ema": STATE}, path),
            "only a moving average of the weights, under 'model_ema'",
        ),
        (
            lambda path: torch.save({"state_dict": {f"ema.{n}": x for n, x in STATE.items()}}, path),
            "only a moving average of the weights, under names such as 'ema.head.bias'",
        ),
        (
            lambda path: path.write_bytes(pickle.dumps({"names": np.array(["road", "car"])})),
            "'names' is an array of <U4, expected one of numbers",
        ),
    ],
)
def test_what_is_no_checkpoint_gets_one_line_that_names_the_file(
    tmp_path: Path, write: Any, complaint: str
) -> None:
    path = tmp_path / "file.pth"
    write(path)
    with pytest.raises(StageError, match=complaint) as error:
        read_checkpoint(path)
    assert "file.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_beside_a_moving_average_of_them_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "both.pth"
    torch.save({"model_ema": {name: -x for name, x in STATE.items()}, "model": STATE}, path)
    assert is_the_state(read_checkpoint(path))
