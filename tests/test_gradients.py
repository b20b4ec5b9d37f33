"""However a batch is cut, over processes or into micro-batches, its gradient is that of the whole."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import ROOT, stage_environment
from gradient_cases import CASES, batch, create, greatest_difference, same_points, set_up

from experiments.running.devices import Devices
from experiments.training.batches import Cut
from experiments.training.recomputing import recompute_blocks
from experiments.training.step import add_gradients
from models.segmenter import LabelCounts

pytest.importorskip("transformers")
CPU = Devices(torch.device("cpu"))


@pytest.mark.parametrize("case", CASES)
def test_accumulated_gradients_are_those_of_the_whole_batch(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the statistics of batch norm held: they are of a part's images, and differ by their nature."""
    monkeypatch.setattr(torch, "rand", same_points(torch.rand))
    assert greatest_difference(case, CPU, part=2, freeze_norms=True) < 1e-5


def test_two_processes_give_the_gradients_of_one() -> None:
    """Batch norm included, whose statistics are of all processes' images."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "tests/gradient_cases.py"],
        cwd=ROOT,
        env=stage_environment() | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(": ") for line in done.stdout.splitlines())
    assert rows.keys() == CASES.keys()
    for case, difference in rows.items():
        assert float(difference) < 1e-5, case


@pytest.mark.parametrize("case", ["spgnet", "gun", "semask-fpn", "alignseg-lovasz"])
def test_recomputed_activations_change_nothing(case: str) -> None:
    found = []
    for recompute in (False, True):
        model, recipe = create(case)
        if recompute:
            recompute_blocks(model)
        setup = set_up(model, recipe, CPU, part=4)
        images, labels = batch()
        terms = add_gradients(setup, [(images.to(next(model.parameters()).dtype), labels)])
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((terms, gradients, [b.clone() for b in model.buffers()]))
    torch.testing.assert_close(found[0], found[1])


def test_counts_of_parts_add_up() -> None:
    _, labels = batch()
    whole = LabelCounts.of(labels, 5)
    parts = torch.stack([LabelCounts.of(part, 5).flat() for part in labels.split(1)])
    assert torch.equal(whole.flat(), parts.sum(dim=0))
    assert whole.labelled == (labels != 255).sum()
    assert whole.masks == sum(len(image[image != 255].unique()) for image in labels)
    assert (whole.images, whole.pixels) == (4, labels.numel())


def test_a_cut_says_how_many_images_batch_norm_sees() -> None:
    model, recipe = create("spgnet")
    setup = set_up(model, recipe, CPU, part=2)
    assert setup.cut == Cut(4, 1, 2)
    assert "statistics of 2 images at a time, not of the batch's 4" in setup.warnings()[0]
    assert set_up(model, recipe, CPU, part=4).warnings() == []
