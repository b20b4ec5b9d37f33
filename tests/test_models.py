"""What every model promises, whichever it is."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Workspace

import models
from experiments.config import model_options
from experiments.config.params import load_params
from experiments.config.strict import ConfigError
from models import _template
from models.__main__ import describe
from models.segmenter import OFFSETS, SCORES, Prediction, PredictionError, Segmenter

SMALL: dict[str, dict[str, Any]] = {
    "spgnet": {"backbone": "resnet18"},
    "gun": {"backbone": "drn_d_14_narrow"},
    "semask": {"backbone": "swin_nano"},
    "alignseg": {"backbone": "resnet18s"},
    "segnet": {"backbone": "vgg8_bn_narrow"},
    "enet": {},
    "sq": {"backbone": "squeezenet1_1_narrow"},
    "icnet": {"backbone": "resnet18"},
    "erfnet": {},
    "deeplabv3plus": {"backbone": "drn_d_14_narrow"},
    "denseaspp": {"backbone": "drn_d_14_narrow"},
    "danet": {"backbone": "drn_d_14_narrow"},
    "fcn8s": {"backbone": "vgg8_bn_narrow"},
    "adelaide": {"backbone": "vgg8_bn_narrow"},
    "crf_rnn": {"backbone": "vgg8_bn_narrow"},
    "deeplab": {"backbone": "vgg8_bn_narrow"},
    "dilation10": {"backbone": "vgg8_bn_narrow"},
}
PAPERS = ("spgnet", "gun", "semask", "alignseg")


def test_every_model_is_here() -> None:
    assert sorted(SMALL) == models.names()


@pytest.mark.parametrize("name", PAPERS)
def test_maps_for_figures_hold_no_graph(name: str) -> None:
    model = models.create(name, 3, **SMALL[name]).train()
    maps = model(torch.randn(2, 3, 64, 64)).maps
    assert maps
    assert not any(values.requires_grad for values in maps.values())


def test_a_learned_upsampling_gives_its_offsets_and_what_it_sampled() -> None:
    """Of every network of the default run: evaluation scores it with and without its offsets."""
    runs = load_params(ROOT / "params.yaml").runs()
    learned = set()
    for run in {(run.experiment.model, str(run.options)): run for run in reversed(runs)}.values():
        key = run.key
        model = models.create(run.experiment.model, 5, **run.options).eval()
        with torch.inference_mode():
            maps = model(torch.zeros(1, 3, 64, 64)).maps
        assert (OFFSETS in maps) == (SCORES in maps), key
        if OFFSETS in maps:
            learned.add(key)
            assert maps[OFFSETS].shape == (1, 2, 64, 64)
            assert maps[SCORES].shape[:2] == (1, 5)
    assert {"gun-fusion", "gun-large-rf", "swin-t-fpn-gum"} <= learned


@pytest.mark.parametrize(
    ("name", "classes", "problem"),
    [
        ("earli", 5, "auxiliary scores 'earli' have no weight; auxiliary_weights has ['early']"),
        ("early", 4, "auxiliary scores 'early' are of 4 classes; expected 5"),
    ],
)
def test_auxiliary_scores_that_no_loss_would_take_are_refused(name: str, classes: int, problem: str) -> None:
    scores = {name: torch.zeros(2, classes, 4, 4)}
    prediction = Prediction(torch.zeros(2, 5, 8, 8), auxiliary=scores)
    with pytest.raises(PredictionError, match=re.escape(problem)):
        Segmenter(5, {"early": 0.4}).loss(prediction, torch.zeros(2, 8, 8, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("gun", {"fusion": "sum"}, {}, True),
        ("gun", {"encoder": "single-low", "fusion": "concat"}, {"encoder": "single-low"}, True),
        ("gun", {"fusion": "concat"}, {}, False),
        ("spgnet", {"stages": 1, "excitation": "tanh"}, {"stages": 1}, True),
        ("spgnet", {"excitation": "tanh"}, {}, False),
        ("alignseg", {"context": "ppm", "context_size": 5}, {"context": "ppm"}, True),
        ("semask", {"attention": "window"}, {}, True),
        ("semask", {"semantic_stages": [2, 1]}, {"semantic_stages": (1, 2)}, True),
    ],
)
def test_options_that_settle_to_the_same_are_the_same_network(
    name: str, one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    cls = models.model_class(name)
    ours, theirs = (
        {k: list(v) if isinstance(v, tuple) else v for k, v in cls.settled_options(19, **options).items()}
        for options in (one, other)
    )
    assert (ours == theirs) is same
    images = torch.randn(2, 3, 64, 64)
    logits = []
    for options in (one, other):
        torch.manual_seed(0)
        model = models.create(name, 19, **{**SMALL[name], **options}).eval()
        with torch.no_grad():
            logits.append(model(images).logits)
    if same:
        torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_global_attention_is_another_network_where_classes_are_many() -> None:
    cls = models.model_class("semask")
    assert cls.settled_options(150)["attention"] == "auto"
    assert cls.settled_options(150) != cls.settled_options(150, attention="window")


def test_the_template_trains_as_a_copy_of_it(prepared: Workspace) -> None:
    """In a copy of the code, as somebody would add a model."""
    for name in ("models", "experiments"):
        shutil.copytree(ROOT / name, prepared.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "models/_template.py", prepared.folder / "models/mine.py")
    prepared.params["experiments"]["mine"] = prepared.params["experiments"]["gun-small"] | {
        "paper": "mine", "table": "first", "row": "as it is", "model": "mine", "options": {"width": 8},
    }  # fmt: skip
    prepared.write()
    path = {"PYTHONPATH": str(prepared.folder)}
    for stage in ("prepare", "train", "evaluate"):
        done = prepared.stage(stage, *([] if stage == "prepare" else ["mine", "--workers", "1"]), **path)
        assert done.returncode == 0, done.stderr
    assert Path("results/tiny/evaluate/mine.json").is_file()
    own = prepared.folder / "models/mine.py"
    own.write_text(own.read_text().replace("width: int = 64", "width=64"))
    refused = prepared.stage("train", "mine", **path)
    assert refused.returncode == 1
    assert refused.stderr == (
        "train: models/mine.py: option 'width' of Template has no annotation; expected one, as in "
        "'width: int = 64', to check params.yaml against\n"
    )


@pytest.mark.parametrize(
    ("text", "problem"), [("import nothing_of_the_kind", "No module named"), ("x = )", "unmatched")]
)
def test_a_model_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, problem: str
) -> None:
    own = tmp_path / "mine.py"
    own.write_text(f"{text}\n")
    monkeypatch.setattr(models, "model_class", lambda _: runpy.run_path(str(own)))
    with pytest.raises(ConfigError, match=rf"a.model: model 'gun' cannot be.*{problem}.*mine.py line 1\)"):
        model_options._class("gun", "params.yaml: experiments.a.model")


def test_the_template_says_what_it_cannot_take() -> None:
    assert "_template" not in models.names()
    with pytest.raises(ValueError, match="width is 0; expected at least 1 channel"):
        _template.MODEL(3, width=0)


@pytest.mark.parametrize("name", models.names())
def test_the_options_of_a_model_can_be_listed(name: str) -> None:
    text = describe(name)
    assert "pretrained: bool | str = False" in text
    assert "num_classes: K" in text


def test_an_unknown_model_gets_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "models", "gum"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "models: unknown model 'gum'; did you mean 'gun'?\n"
