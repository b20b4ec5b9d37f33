"""The systems on VGG-16: sizes of the references, and what each adds to the trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import models
from models.backbones import vgg
from models.peers import adelaide
from models.peers.crf_rnn import CRFRNN
from models.peers.dilation10 import ContextModule, Dilation10, continue_by_reflection
from models.peers.fcn8s import FCN8s

NARROW = "vgg8_bn_narrow"
SYSTEMS = ["fcn8s", "crf_rnn", "deeplab", "adelaide", "dilation10"]


def parameters(name: str, num_classes: int, **options: Any) -> int:
    with torch.device("meta"):
        model = models.create(name, num_classes, **options)
    return sum(parameter.numel() for parameter in model.parameters())


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("fcn8s", 134),  # Long et al., table 1
        ("crf_rnn", 134),  # FCN-8s, and a few hundred of the CRF
        ("deeplab", 20.5),  # Chen et al., table 2
        ("dilation10", 134),  # the front end is as wide as FCN-8s
    ],
)
def test_parameters_are_the_references(name: str, millions: float) -> None:
    """With Pascal's 21 classes, as the references count."""
    assert parameters(name, 21) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("size", [(64, 96), (37, 51), (1, 9)])
def test_every_system_segments_at_the_inputs_own_resolution(name: str, size: tuple[int, int]) -> None:
    model = models.create(name, 3, backbone=NARROW).eval()
    prediction = model(images(2, 3, *size))
    assert prediction.logits.shape == (2, 3, *size)
    assert prediction.logits.isfinite().all()
    assert not prediction.auxiliary


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_parameter_of_a_system_learns(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name, 3, backbone=NARROW).train()
    labels = torch.randint(0, 3, (2, 40, 56))
    for _ in range(2):  # classifiers that start at zero pass nothing on at first
        terms = model.loss(model(images(2, 3, 40, 56)), labels)
        model.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.1)
    assert all(bool(p.grad.any()) for p in model.parameters() if p.grad is not None and p.ndim > 1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_backbone_that_is_no_vgg_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown backbone 'vgg19'; did you mean 'vgg16'"):
        models.create(name, 3, backbone="vgg19")


def test_a_pooling_that_does_not_shrink_makes_later_convolutions_dilate() -> None:
    poolings = (*(vgg.Pooling(),) * 3, None, None)
    with torch.device("meta"):
        trunk = vgg.VGG("vgg16", levels=(3, 6), poolings=poolings)
        features = trunk(torch.empty(1, 3, 64, 96))
    dilations = [m.dilation[0] for m in trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    assert dilations == [1] * 10 + [2] * 3 + [4, 1]
    assert [tuple(feature.shape) for feature in features] == [(1, 256, 8, 12), (1, 4096, 8, 12)]
    assert trunk.strides == [8, 8]


def test_fc6_takes_evenly_spaced_weights_of_a_larger_one() -> None:
    weight = torch.arange(8.0)[:, None, None, None] + 100 * torch.arange(7.0).expand(1, 1, 7, 7)
    taken = vgg._decimated(weight.expand(8, 3, 7, 7), (2, 3, 3, 3))
    assert taken[:, 0, 0, 0].tolist() == [0, 4]
    assert taken[0, 0, 0].tolist() == [0, 300, 600]


def test_fcn8s_starts_from_bilinear_upsampling() -> None:
    model = FCN8s(3, backbone=NARROW)
    coarse = torch.zeros(1, 3, 6, 6)
    coarse[0, 1, 2:4, 2:4] = 1.0
    doubled = model.scores.doublings[0](coarse).detach()
    expected = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(doubled[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_deeplab_refines_at_test_and_not_in_training() -> None:
    with_crf, without = (models.create("deeplab", 3, backbone=NARROW, iterations=n) for n in (10, 0))
    without.load_state_dict(with_crf.state_dict())
    batch = images(1, 3, 40, 56)
    plain = without.eval()(batch).logits
    assert not torch.equal(with_crf.eval()(batch).logits, plain)
    trained = []
    for model in (with_crf, without):
        torch.manual_seed(0)  # of dropout
        trained.append(model.train()(batch).logits)
    torch.testing.assert_close(*trained, rtol=0, atol=0)


def test_crf_rnn_without_updates_is_fcn8s() -> None:
    recurrent = CRFRNN(3, backbone=NARROW, iterations=0).eval()
    fcn = FCN8s(3, backbone=NARROW).eval()
    fcn.scores.load_state_dict(recurrent.scores.state_dict())
    batch = images(1, 3, 40, 56)
    torch.testing.assert_close(recurrent(batch).logits, fcn(batch).logits)


def test_dilation10_continues_the_image_by_what_its_front_end_loses() -> None:
    """186 pixels a side, as the authors' definition for Cityscapes: 1396 become 1024."""
    with torch.device("meta"):
        model = Dilation10(19)
        (features,) = model.front(torch.empty(1, 3, 1396, 1396))
    assert model.front.margin == 186
    assert features.shape[-2:] == (128, 128)


def test_reflection_repeats_where_the_image_is_smaller_than_the_margin() -> None:
    row = torch.arange(3.0).view(1, 1, 1, 3)
    assert continue_by_reflection(row, 4, 1)[0, 0, 4].tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert continue_by_reflection(row, 1, 4).shape == (1, 1, 6, 6)


def test_the_context_module_starts_as_the_identity_of_positive_scores() -> None:
    scores = images(1, 4, 20, 30).abs()
    torch.testing.assert_close(ContextModule(4)(scores), scores)
    convolutions = [m for m in ContextModule(4) if isinstance(m, torch.nn.Conv2d)]
    assert [c.dilation[0] for c in convolutions] == [1, 1, 2, 4, 8, 16, 32, 64, 1, 1]


def test_adelaide_relates_every_pair_of_nodes_in_range_once() -> None:
    """A range box of 0.4 of the shorter side: 8 of 20 nodes, 4 to each side."""
    surrounding = adelaide._surrounding(20, 30)
    assert len(surrounding) == (9 * 9 - 1) // 2
    assert not {(-dy, -dx) for dy, dx in surrounding} & set(surrounding)
    assert set(adelaide._above(20, 30)) == {(dy, dx) for dy in range(-8, 0) for dx in range(-4, 5)}
    assert adelaide._above(1, 1) == []


@pytest.mark.parametrize("hidden_values", [1, 2**26], ids=["one offset at a time", "a row at a time"])
def test_mean_field_over_nodes_is_the_plain_formula(
    hidden_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adelaide, "_HIDDEN_VALUES", hidden_values)
    model = adelaide.Adelaide(3, backbone=NARROW, iterations=1).eval()
    torch.manual_seed(0)
    unary = torch.randn(1, 3, 3, 4)
    features = torch.randn(1, model.features.channels, 3, 4)
    with torch.no_grad():
        pairs = {name: network(features) for name, network in model.pairwise.items()}
        found = model._mean_field(unary, pairs)
        expected, marginals = unary.clone(), unary.softmax(1)
        for name, network in model.pairwise.items():
            assert isinstance(network, adelaide.PairwiseNetwork)
            total, edges = torch.zeros_like(unary), torch.zeros(3, 4)
            for dy, dx in adelaide._RELATIONS[name](3, 4):
                for y in range(3):
                    for x in range(4):
                        if not (0 <= y + dy < 3 and 0 <= x + dx < 4):
                            continue
                        ours, theirs = features[..., y : y + 1, x : x + 1], features[0, :, y + dy, x + dx]
                        hidden = network.first(ours) + network.second(theirs[None, :, None, None])
                        table = network.scores(hidden.relu()).view(3, 3)
                        pair = table.flatten().softmax(0).view(3, 3)
                        given_first, given_second = pair / pair.sum(1, keepdim=True), pair / pair.sum(0)
                        total[0, :, y, x] += given_first.log() @ marginals[0, :, y + dy, x + dx]
                        total[0, :, y + dy, x + dx] += given_second.log().T @ marginals[0, :, y, x]
                        edges[y, x] += 1
                        edges[y + dy, x + dx] += 1
            expected += total / edges.clamp(min=1)
    torch.testing.assert_close(found, expected)


def test_adelaide_is_trained_by_the_likelihood_of_each_potential() -> None:
    model = adelaide.Adelaide(3, backbone=NARROW).train()
    prediction = model(images(2, 3, 64, 96))
    terms = model.loss(prediction, torch.randint(0, 3, (2, 64, 96)))
    assert set(terms) == {"main", "surrounding", "above"}
    ignored = model.loss(prediction, torch.full((2, 64, 96), models.IGNORE_LABEL))
    assert all(float(term.detach()) == 0 for term in ignored.values())
