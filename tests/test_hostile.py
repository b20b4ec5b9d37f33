"""A few dozen hostile inputs; `make fuzz` does two hundred."""

from __future__ import annotations

from pathlib import Path

import hostile
import pytest
from fuzzing import fuzz
from PIL import Image


def test_hostile_inputs_are_refused_in_a_line() -> None:
    verdicts = fuzz(24)
    bad = [verdict for verdict in verdicts if verdict.answer not in ("refused", "repaired", "valid")]
    assert bad == []
    assert {verdict.case.kind for verdict in verdicts} >= {"params", "manifest", "checkpoint", "result"}


def test_a_picture_that_another_program_would_run_is_not_opened(tmp_path: Path) -> None:
    """Pillow hands PostScript to an interpreter."""
    from experiments.datasets.base import DataError, read_image

    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(path, format="EPS")
    with pytest.raises(DataError, match="does not decode as an image"):
        read_image(path)


@pytest.mark.parametrize(("width", "height"), [(2_000_000, 2_000_000), (20_000, 20_000), (8000, 5000)])
def test_a_picture_that_says_that_it_is_huge_is_not_unpacked(tmp_path: Path, width: int, height: int) -> None:
    from experiments.datasets.base import DataError, read_image

    path = tmp_path / "a.png"
    path.write_bytes(hostile._png(width, height))
    with pytest.raises(DataError, match="pixels"):
        read_image(path)
