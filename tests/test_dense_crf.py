"""The fully connected CRF beside brute force: its filters, its mean field, its gradients and its energy."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.parts import dense_crf
from models.parts.dense_crf import AppearanceKernel, Bandwidths, DenseCRF, SmoothnessKernel
from models.parts.permutohedral import PermutohedralLattice

LEVELS = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
BANDWIDTHS = Bandwidths(position=30, colour=20, smoothness=3)


@pytest.fixture(params=["all pairs", "lattice"])
def both_filters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The small images of these tests, once as a large image is filtered."""
    if request.param == "lattice":
        monkeypatch.setattr(dense_crf, "ALL_PAIRS", 0)
    filtered: str = request.param
    return filtered


@pytest.fixture
def on_the_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_crf, "ALL_PAIRS", 0)


def scene(height: int, width: int) -> Tensor:
    """A picture (1, 3, H, W) of a bright disc on a dark ground with soft light, and some noise."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = ((y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2).float()
    levels = 60 + 100 * disc + 0.5 * x + 4 * torch.randn(3, height, width, generator=generator)
    return ((levels - 120) / LEVELS)[None]


def smooth_scores(classes: int, height: int, width: int) -> Tensor:
    coarse = torch.randn(1, classes, 6, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (height, width), mode="bicubic")


def gaussian(features: Tensor) -> Tensor:
    """exp(-|f_i - f_j|^2 / 2) for features (N, d), every pair of them."""
    return torch.exp(-0.5 * (features[:, None] - features).square().sum(-1))


def kernels_by_brute_force(images: Tensor, bandwidths: Bandwidths) -> tuple[Tensor, Tensor]:
    """The appearance and the smoothness kernel (H W, H W) of one image, normalised."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((x, y), dim=-1).reshape(-1, 2).to(images)
    colours = (images[0] * LEVELS).flatten(1).T
    appearance = gaussian(torch.cat((places / bandwidths.position, colours / bandwidths.colour), dim=1))
    normalised = []
    for kernel in (appearance, gaussian(places / bandwidths.smoothness)):
        scale = kernel.sum(1).rsqrt()
        normalised.append(scale[:, None] * kernel * scale)
    return normalised[0], normalised[1]


def free_energy(marginals: Tensor, scores: Tensor, coupling: Tensor) -> float:
    """Of marginals (N, K): expected energy of the pairs and of the scores, less the entropy."""
    pairs = -0.5 * (marginals * (coupling @ marginals)).sum()
    return float(pairs - (marginals * scores).sum() + torch.xlogy(marginals, marginals).sum())


def as_matrix(kernel: AppearanceKernel | SmoothnessKernel, height: int, width: int) -> Tensor:
    """A normalised kernel (H W, H W), column by column."""
    size = height * width
    columns = torch.eye(size, dtype=torch.float64).view(1, height, width, size)
    return kernel.filter(columns).view(size, size)


def test_the_smoothness_kernel_is_the_gaussian() -> None:
    _, expected = kernels_by_brute_force(torch.zeros(1, 3, 48, 70, dtype=torch.float64), BANDWIDTHS)
    kernel = SmoothnessKernel(48, 70, BANDWIDTHS.smoothness, expected)
    torch.testing.assert_close(as_matrix(kernel, 48, 70), expected, rtol=0, atol=1e-4)


def marginals_by_brute_force(images: Tensor, scores: Tensor, weights: tuple[float, float]) -> Tensor:
    """After ten updates: (H W, K)."""
    appearance, smoothness = kernels_by_brute_force(images, BANDWIDTHS)
    coupling = weights[0] * appearance + weights[1] * smoothness
    unary = scores.flatten(2)[0].T
    marginals = unary.softmax(1)
    for _ in range(10):
        marginals = (unary + coupling @ marginals).softmax(1)
    return marginals


def marginals_of_the_crf(images: Tensor, scores: Tensor, weights: tuple[float, float]) -> Tensor:
    crf = DenseCRF(scores.shape[1], BANDWIDTHS, appearance_weight=weights[0], smoothness_weight=weights[1])
    found: Tensor = crf(scores, images, 10).softmax(1).flatten(2)[0].T
    return found


@pytest.mark.parametrize("weights", [(1.0, 1.0), (5.0, 3.0)], ids=["weak coupling", "strong coupling"])
def test_the_crf_is_brute_force(weights: tuple[float, float]) -> None:
    """On 48 x 64: far within the 2 % of the marginals' range, from 0 to 1, that are asked for."""
    images, scores = scene(48, 64), 4 * smooth_scores(5, 48, 64)
    error = marginals_of_the_crf(images, scores, weights) - marginals_by_brute_force(images, scores, weights)
    assert float(error.abs().max()) < 0.001


@pytest.mark.usefixtures("on_the_lattice")
@pytest.mark.parametrize(
    ("weights", "largest", "mean"),
    # With the strong coupling of DeepLab's paper a pixel in doubt amplifies an error of its messages.
    [((1.0, 1.0), 0.01, 0.0005), ((5.0, 3.0), 0.06, 0.002)],
    ids=["weak coupling", "strong coupling"],
)
def test_the_crf_on_the_lattice_is_close_to_brute_force(
    weights: tuple[float, float], largest: float, mean: float
) -> None:
    images, scores = scene(48, 64), 4 * smooth_scores(5, 48, 64)
    found = marginals_of_the_crf(images, scores, weights)
    expected = marginals_by_brute_force(images, scores, weights)
    error = (found - expected).abs()
    assert float(error.max()) < largest
    assert float(error.mean()) < mean
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.99


@pytest.mark.parametrize(("position", "colour"), [(160, 3), (80, 13), (8, 20)])
def test_the_lattice_filters_messages_within_half_a_per_cent(position: float, colour: float) -> None:
    images, bandwidths = scene(48, 64), Bandwidths(position, colour, 3)
    expected, _ = kernels_by_brute_force(images, bandwidths)
    values = smooth_scores(5, 48, 64).softmax(1).permute(0, 2, 3, 1)
    found = AppearanceKernel(images, bandwidths, all_pairs=0).filter(values)
    error = (found.view(-1, 5) - expected @ values.reshape(-1, 5)).abs()
    assert float(error.mean()) < 0.006


def test_the_filter_is_symmetric_and_positive_semidefinite() -> None:
    features = torch.randn(1, 60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = PermutohedralLattice(features).filter(torch.eye(60, dtype=torch.float64)[None])[0]
    torch.testing.assert_close(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-12


@pytest.mark.usefixtures("both_filters")
def test_images_of_a_batch_do_not_mix() -> None:
    images = torch.cat((scene(12, 16), scene(12, 16).flip(-1) * 0.5))
    scores = torch.randn(2, 3, 12, 16)
    crf = DenseCRF(3, BANDWIDTHS, appearance_weight=5, smoothness_weight=3)
    together = crf(scores, images, 3)
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], crf(scores[i : i + 1], images[i : i + 1], 3))


@pytest.mark.usefixtures("both_filters")
def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    crf = DenseCRF(3, BANDWIDTHS, appearance_weight=2, smoothness_weight=1, learned=True).double()
    images = scene(4, 5).double()
    scores = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: crf(s, images, 2), (scores,))

    def of_parameters(weights: Tensor, compatibility: Tensor) -> Tensor:
        replaced = {"weights": weights, "compatibility": compatibility}
        output: Tensor = torch.func.functional_call(crf, replaced, (scores.detach(), images, 2))
        return output

    assert torch.autograd.gradcheck(of_parameters, tuple(crf.parameters()))


@pytest.mark.usefixtures("both_filters")
def test_learned_kernels_start_from_potts() -> None:
    images, scores = scene(12, 16), torch.randn(1, 4, 12, 16)
    fixed, learned = (
        DenseCRF(4, BANDWIDTHS, appearance_weight=5, smoothness_weight=3, learned=learned)
        for learned in (False, True)
    )
    torch.testing.assert_close(
        fixed(scores, images, 5).softmax(1), learned(scores, images, 5).softmax(1), rtol=0, atol=1e-4
    )


@pytest.mark.usefixtures("both_filters")
@pytest.mark.parametrize("seed", range(4))
def test_mean_field_does_not_raise_the_free_energy(seed: int) -> None:
    """On random fields: random colours and random scores, with strong coupling."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, 12, 14, dtype=torch.float64, generator=generator)
    scores = 2 * torch.randn(1, 4, 12, 14, dtype=torch.float64, generator=generator)
    bandwidths = Bandwidths(position=5, colour=40, smoothness=2)
    crf = DenseCRF(4, bandwidths, appearance_weight=8, smoothness_weight=4)
    coupling = 8 * as_matrix(AppearanceKernel(images, bandwidths), 12, 14)
    coupling += 4 * as_matrix(SmoothnessKernel(12, 14, 2, images), 12, 14)
    unary = scores.flatten(2)[0].T
    energies = [
        free_energy(crf(scores, images, n).softmax(1).flatten(2)[0].T, unary, coupling) for n in range(12)
    ]
    assert energies[0] > energies[-1]
    assert all(after <= before + 1e-6 for before, after in pairwise(energies))


@pytest.mark.usefixtures("both_filters")
def test_a_crf_moves_a_boundary_to_where_the_image_has_one() -> None:
    """Scores change between columns 12 and 13, the colour between columns 15 and 16."""
    images = torch.full((1, 3, 24, 32), -1.0)
    images[..., 16:] = 1.0
    scores = torch.zeros(1, 2, 24, 32)
    scores[:, 0, :, :13] = scores[:, 1, :, 13:] = 1.0
    crf = DenseCRF(2, Bandwidths(20, 10, 1), appearance_weight=5, smoothness_weight=1)
    labels = crf(scores, images, 10).argmax(1)[0]
    assert labels[:, :16].eq(0).all()
    assert labels[:, 16:].eq(1).all()


@pytest.mark.usefixtures("both_filters")
def test_a_crf_removes_a_speck_of_another_class() -> None:
    scores = torch.zeros(1, 2, 16, 16)
    scores[:, 0] = 1.0
    scores[:, :, 8, 8] = torch.tensor([0.0, 1.0])
    crf = DenseCRF(2, BANDWIDTHS, appearance_weight=2, smoothness_weight=2)
    assert crf(scores, torch.zeros(1, 3, 16, 16), 5).argmax(1).eq(0).all()


@pytest.mark.usefixtures("both_filters")
@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 20, 30), torch.zeros(1, 3, 1, 200), torch.zeros(2, 3, 7, 5)],
    ids=["one pixel", "one colour", "one row", "two images"],
)
def test_degenerate_images_give_a_result(images: Tensor) -> None:
    scores = torch.randn(len(images), 3, *images.shape[-2:])
    crf = DenseCRF(3, BANDWIDTHS, appearance_weight=5, smoothness_weight=3)
    assert crf(scores, images, 3).isfinite().all()


@pytest.mark.parametrize("value", [1e12, -1e30, float("inf"), float("nan")])
def test_points_that_are_nowhere_are_filtered_or_refused(value: float) -> None:
    features = torch.rand(1, 20, 2)
    features[0, 3] = value
    assert PermutohedralLattice(features).filter(torch.rand(1, 20, 3)).isfinite().all()
    if value == value:
        with pytest.raises(ValueError, match="bandwidth"):
            PermutohedralLattice(torch.cat((features, features, features[..., :1]), -1))


@pytest.mark.usefixtures("on_the_lattice")
def test_bandwidths_too_small_for_the_image_get_one_line() -> None:
    crf = DenseCRF(2, Bandwidths(1e-3, 1e-3, 3), appearance_weight=1, smoothness_weight=1)
    with pytest.raises(ValueError, match="bandwidths are too small") as refused:
        crf(torch.zeros(1, 2, 40, 40), torch.randn(1, 3, 40, 40), 1)
    assert "\n" not in str(refused.value)


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="bandwidth colour is 0; expected more than 0"):
        Bandwidths(1, 0, 1)
    with pytest.raises(ValueError, match="smoothness_weight is -1; expected at least 0"):
        DenseCRF(2, BANDWIDTHS, appearance_weight=1, smoothness_weight=-1)


def test_half_precision_scores_are_filtered_in_float32() -> None:
    crf = partial(DenseCRF(2, BANDWIDTHS, appearance_weight=1, smoothness_weight=1), iterations=2)
    images, scores = scene(8, 8), torch.randn(1, 2, 8, 8).bfloat16()
    torch.testing.assert_close(crf(scores, images.bfloat16().float()), crf(scores.float(), images.bfloat16()))
