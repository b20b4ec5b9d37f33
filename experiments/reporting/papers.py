"""What the report says of each paper: its idea, which experiments stand for it, and what its figures compare.

Keys are those of ``params.yaml``. One that is not there is left out, and a paper of a reader's own gets a
section of its tables and claims.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from experiments.config.params import Params


@dataclass(frozen=True)
class Ablation:
    """Experiments that are set beside baselines, a row each."""

    title: str
    rows: tuple[tuple[str, str], ...]
    """Pairs of an experiment and the one that it differs from."""


@dataclass(frozen=True)
class PaperPage:
    """One paper in the report."""

    key: str
    title: str
    idea: str = ""
    """What it adds, in a sentence."""
    main: str = ""
    """Experiment of the row that the paper is known by."""
    model: str = ""
    """Experiment with the idea, as the ablations have it."""
    baseline: str = ""
    """The same without the idea."""
    question: str = ""
    """What a reader asks of the idea."""
    headline: str = ""
    """Claim that answers it by mIoU."""
    boundary: str = ""
    """Claim that answers it near boundaries."""
    ablations: tuple[Ablation, ...] = ()
    classes: tuple[str, str] | None = None
    """Two experiments whose classes are compared, the paper's own first; else model and baseline."""
    curves: tuple[tuple[str, str, str], ...] = ()
    """Lines of the boundary figure: name, experiment, and ``bilinear`` in place of its learned upsampling."""
    maps: tuple[str, ...] = ()
    """Beginnings of the names of the maps that the paper shows; none shows all."""
    maps_title: str = "What the network computes on the way"
    published_costs: tuple[str, ...] = ()
    """Published costs that the paper sets beside mIoU, a figure each: ``macs`` or ``fps``."""
    rows: tuple[tuple[str, str, str], ...] = ()
    """Published rows, by table and row, of an experiment that has another table's row in ``params.yaml``."""
    peers: tuple[str, ...] = ()
    """Systems of its comparison table, trained here by one recipe."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All that its ablations compare, in their order."""
        return [pair for ablation in self.ablations for pair in ablation.rows]


def _beside(baseline: str, *keys: str) -> tuple[tuple[str, str], ...]:
    return tuple((key, baseline) for key in keys)


PAPERS = (
    PaperPage(
        key="spgnet",
        title="SPGNet",
        idea="A first stage predicts classes, and that prediction re-weights the features of a second stage.",
        main="spgnet-r50",
        model="spgnet-r18-spg",
        baseline="spgnet-r18-2stage",
        question="Is a second stage better for being guided by the prediction of the first?",
        headline="spgnet-guidance",
        boundary="spgnet-boundaries",
        ablations=(
            Ablation(
                "Components of Semantic Prediction Guidance, beside two stages without it",
                _beside(
                    "spgnet-r18-2stage",
                    "spgnet-r18-spg",
                    "spgnet-r18-spg-unsupervised",
                    "spgnet-r18-spg-no-identity",
                    "spgnet-r18-spg-softmax",
                    "spgnet-r18-spg-tanh",
                    "spgnet-r18-spg-relu",
                    "spgnet-r18-se",
                    "spgnet-r18-ge",
                ),
            ),
            Ablation(
                "Stages, beside one stage",
                _beside(
                    "spgnet-r18-1stage",
                    "spgnet-r18-2stage",
                    "spgnet-r18-2stage-no-csfa",
                    "spgnet-r18-spg",
                    "spgnet-r18-3stage",
                    "spgnet-r34-1stage",
                ),
            ),
        ),
        classes=("spgnet-r50", "denseaspp"),
        maps=("stage1_prediction", "stage1_guided_attention"),
        maps_title="Guided Attention",
        published_costs=("macs",),
        peers=("denseaspp", "danet"),
    ),
    PaperPage(
        key="gun",
        title="GUN",
        idea="Upsampling reads the low-resolution map at places that a Guidance Module predicts, in place of "
        "a fixed bilinear grid.",
        main="gun-fusion",
        model="gun-fusion",
        baseline="gun-multi-shared",
        question="Is guided upsampling better than bilinear upsampling?",
        headline="gun-guided",
        boundary="gun-guided-boundaries",
        ablations=(
            Ablation(
                "Guidance Modules, beside bilinear upsampling",
                _beside("gun-multi-shared", "gun-fusion", "gun-large-rf", "gun-high-res", "gun-nearest"),
            ),
            Ablation(
                "Encoder, fusion and auxiliary loss, beside two resolutions with shared weights",
                _beside(
                    "gun-multi-shared",
                    "gun-single-low",
                    "gun-single-medium",
                    "gun-multi-unshared",
                    "gun-fuse-concat",
                    "gun-no-aux",
                ),
            ),
            Ablation(
                "Augmentation, beside none",
                _beside("gun-aug-none", "gun-aug-scale", "gun-aug-color", "gun-aug-all"),
            ),
        ),
        curves=(
            ("guided", "gun-fusion", ""),
            ("bilinear, same network", "gun-fusion", "bilinear"),
            ("bilinear, trained apart", "gun-multi-shared", ""),
        ),
        maps=("offset",),
        maps_title="Guidance offsets",
        published_costs=("fps",),
        rows=(("cityscapes-test", "GUN", "gun-fusion"),),
        peers=(
            "segnet", "enet", "sq", "crf-rnn", "deeplab", "fcn8s", "adelaide", "dilation10", "icnet",
            "erfnet", "deeplabv3plus",
        ),
    ),
    PaperPage(
        key="semask",
        title="SeMask",
        idea="A Semantic Layer after every stage of a transformer attends by class, supervised by its own "
        "prior maps.",
        main="semask-t-fpn",
        model="semask-t-fpn",
        baseline="swin-t-fpn",
        question="Do Semantic Layers improve a hierarchical transformer?",
        headline="semask-swin-t",
        ablations=(
            Ablation(
                "With Semantic Layers, beside the same backbone and decoder without",
                (
                    ("semask-t-fpn", "swin-t-fpn"),
                    ("semask-s-fpn", "swin-s-fpn"),
                    ("semask-b-fpn", "swin-b-fpn"),
                    ("semask-l-fpn", "swin-l-fpn"),
                    ("semask-t-fpn-cityscapes", "swin-t-fpn-cityscapes"),
                    ("semask-s-fpn-cityscapes", "swin-s-fpn-cityscapes"),
                    ("semask-b-fpn-cityscapes", "swin-b-fpn-cityscapes"),
                    ("semask-l-fpn-cityscapes", "swin-l-fpn-cityscapes"),
                    ("semask-mit-b0-fpn", "mit-b0-fpn"),
                    ("semask-t-mask2former", "swin-t-mask2former"),
                ),
            ),
            Ablation(
                "Parts of SeMask-T, beside Swin-T without Semantic Layers",
                _beside(
                    "swin-t-fpn",
                    "semask-t-no-supervision",
                    "semask-t-supervision-only",
                    "semask-t-lambda-1",
                    "semask-t-loss-low",
                    "semask-t-loss-high",
                    "semask-t-stages-1",
                    "semask-t-stages-12",
                    "semask-t-stages-34",
                    "semask-t-window",
                    "semask-t-global",
                    "swin-t-fpn-gum",
                ),
            ),
        ),
        maps=("prior",),
        maps_title="Prior maps by stage",
        published_costs=("parameters",),
    ),
    PaperPage(
        key="alignseg",
        title="AlignSeg",
        idea="Features of two resolutions, and context, are aligned by predicted offsets before they are "
        "added.",
        main="alignseg-r101",
        model="alignseg-r50-fa-cm",
        baseline="alignseg-r50-baseline",
        question="Does alignment improve the aggregation of features and context?",
        headline="alignseg-fa",
        boundary="alignseg-fa-boundaries",
        ablations=(
            Ablation(
                "AlignFA and AlignCM, beside bilinear upsampling without context",
                _beside(
                    "alignseg-r50-baseline",
                    "alignseg-r50-fa",
                    "alignseg-r50-cm",
                    "alignseg-r50-fa-cm",
                    "alignseg-r50-fa-one-offset",
                    "alignseg-r50-no-aux",
                    "alignseg-r50-released",
                ),
            ),
            Ablation(
                "Context modules, beside AlignFA without context",
                _beside(
                    "alignseg-r50-fa",
                    "alignseg-r50-fa-cm",
                    "alignseg-r50-cm-1",
                    "alignseg-r50-cm-5",
                    "alignseg-r50-fa-ppm",
                    "alignseg-r50-fa-aspp",
                    "alignseg-r50-fa-gap",
                ),
            ),
            Ablation(
                "Losses, beside cross-entropy",
                _beside("alignseg-r101", "alignseg-r101-ohem", "alignseg-r101-mined"),
            ),
        ),
        maps=("offset",),
        maps_title="Offset fields by step",
        rows=(("cityscapes-test", "AlignSeg, ResNet-101", "alignseg-r101"),),
    ),
)  # fmt: skip


def pages(params: Params) -> list[PaperPage]:
    """Every paper that the experiments name, in their order, with what there is of it in ``params.yaml``."""
    known = {page.key: page for page in PAPERS}
    named = dict.fromkeys(experiment.paper for experiment in params.experiments.values())
    order = [key for key in known if key in named] + [key for key in named if key not in known]
    return [_present(known.get(key, PaperPage(key, key)), params) for key in order]


def _present(page: PaperPage, params: Params) -> PaperPage:
    """The page without what ``params.yaml`` lacks; a paper without a main experiment has its first one."""
    own = [key for key, experiment in params.experiments.items() if experiment.paper == page.key]

    def there(key: str) -> str:
        return key if key in params.experiments else ""

    def both(rows: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        return tuple(row for row in rows if all(map(there, row)))

    model = there(page.model) or own[0]
    ablations = [replace(ablation, rows=both(ablation.rows)) for ablation in page.ablations]
    return replace(
        page,
        main=there(page.main) or model,
        model=model,
        baseline=there(page.baseline),
        headline=page.headline if page.headline in params.claims else "",
        boundary=page.boundary if page.boundary in params.claims else "",
        ablations=tuple(ablation for ablation in ablations if ablation.rows),
        classes=page.classes if page.classes and both([page.classes]) else None,
        curves=tuple(curve for curve in page.curves if there(curve[1])),
        rows=tuple(row for row in page.rows if there(row[2])),
        peers=tuple(filter(there, page.peers)),
    )
